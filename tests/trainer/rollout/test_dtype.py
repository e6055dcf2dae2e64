"""Training in bfloat16: beside float32 on one rollout, and from the command line."""

import dataclasses
import json

import pytest
import torch

from dfpo.__main__ import main
from dfpo.config import build_config
from dfpo.config.noise import Noise
from dfpo.method.critics import estimate_values
from dfpo.method.targets import compute_targets
from dfpo.method.update import update
from dfpo.rewards.functions import Reward
from dfpo.rollout.adapters import root_of
from dfpo.rollout.collect import collect
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy
from dfpo.rollout.sampler import Sampler
from dfpo.run.setup import set_up
from dfpo.tasks import reward
from dfpo.tasks.source import training_rows

SMALL = {
    "rollout.prompts": 3, "rollout.samples": 2, "critic.num_quantiles": 8, "critic.warmup_steps": 1,
    "eval.prompts": 0, "eval.examples": 0, "plots": False, "device": "cpu",
    "rollout.max_new_tokens": 16,
}  # fmt: skip


def settings(tmp_path, dtype):
    return {**SMALL, "dtype": dtype, "runs_dir": str(tmp_path), "name": dtype}


@pytest.mark.parametrize("rank", [0, 4])
def test_one_update_is_nearly_that_of_float32(tmp_path, rank):
    """On the same rollout, critic and policy: bfloat16 has 8 bits, so losses and norms agree to
    a few in a hundred, and are not the same. Under adapters the base is kept in bfloat16 too."""
    policy, tokenizer = load_policy(SHIPPED_POLICY)
    config = build_config({**SMALL, "reward.low": 0, "reward.high": 1})
    verifier = Reward(("verifier",), (reward,), (1.0,))
    rows = training_rows(0, 0, 3)
    sampler = Sampler.of(policy, tokenizer)
    rollout = collect(sampler, sampler, rows, reward=verifier, noise=Noise(), config=config, step=0)
    found = {}
    for dtype in ("float32", "bfloat16"):
        setup = set_up(build_config(settings(tmp_path, dtype) | {"lora.rank": rank}), None)
        estimate = estimate_values(setup.critic, rollout.samples, torch.Generator().manual_seed(0))
        assert estimate.quantiles.dtype == torch.float32
        targets = compute_targets(rollout, estimate, setup.config, 0)
        learner = dataclasses.replace(
            setup.learner, generator=torch.Generator().manual_seed(0)
        )  # fmt: skip
        found[dtype], _ = update(learner, rollout, targets, setup.config, 0, train_policy=True)
        for model in (setup.policy, setup.critic):
            assert all(p.dtype == torch.float32 for p in model.parameters()), "what is trained"
        base = {p.dtype for p in root_of(setup.policy).parameters() if not p.requires_grad}
        assert base == ({getattr(torch, dtype)} if rank else set())
    exact, half = found["float32"], found["bfloat16"]
    for name in ("loss/critic", "critic/anchor", "grad_norm/critic", "grad_norm/policy"):
        assert half[name] == pytest.approx(exact[name], rel=0.05), name
        assert half[name] != exact[name], name
    # Near 0 by construction: advantages are whitened and the first ratio is 1.
    assert half["loss/policy"] == pytest.approx(exact["loss/policy"], abs=0.02)


def test_a_run_in_bfloat16_trains_resumes_and_evaluates(tmp_path, capsys):
    words = [f"--{name}={value}" for name, value in settings(tmp_path, "bfloat16").items()]
    assert main(["train", *words, "--steps=2"]) == 0
    run = tmp_path / "bfloat16"
    first, second = (json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines())
    assert first["kl"] == 0, "the copy of the policy multiplies in the same dtype"
    assert second["loss/policy"] is not None and second["grad_norm/policy"] > 0
    weights = torch.load(run / "checkpoints/step-000002/state.pt", weights_only=True)
    moments = weights["critic_optimizer"]["state"][0]["exp_avg"]
    assert moments.dtype == torch.float32
    capsys.readouterr()
    assert main(["eval", str(run), "--eval.prompts", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean"]
