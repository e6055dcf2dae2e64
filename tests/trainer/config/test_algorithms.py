"""Every algorithm of the table: its critic, and a run of it."""

import json

import pytest
import torch
from small_rollouts import make_rollout

from dfpo.__main__ import main
from dfpo.config import ALGORITHMS, ConfigError, build_config
from dfpo.config.algorithms import Algorithm
from dfpo.config.rules import only_read, predicts
from dfpo.method.critics import build_critic
from dfpo.method.critics.none import NoCritic
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy
from dfpo.run.defaults import complete

SMALL = {
    "steps": 2, "critic.warmup_steps": 0, "eval.prompts": 0, "plots": "false",
    "rollout.prompts": 3, "rollout.samples": 2, "critic.num_quantiles": 8,
    "rollout.max_new_tokens": 40,
}  # fmt: skip


@pytest.fixture(scope="module")
def policy():
    return load_policy(SHIPPED_POLICY)[0]


def critic_of(policy, **settings):
    config = build_config({k.replace("__", "."): v for k, v in settings.items()})
    return build_critic(policy, complete(config, policy, torch.tensor([0.0, 1.0])))


def train(folder, name, algorithm, *flags):
    settings = {**only_read(SMALL, {"algorithm": algorithm}), "algorithm": algorithm}
    words = ["train", "--runs-dir", str(folder), "--name", name]
    words += [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    words += flags
    assert main(words) == 0
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_trains(tmp_path, algorithm):
    metrics = train(tmp_path, "run", algorithm)
    # Any: without KL, groups of equal rewards alone give no gradient.
    assert any(m["grad_norm/policy"] > 0 for m in metrics)
    has_values = predicts(build_config({"algorithm": algorithm}))
    assert ("value/mean" in metrics[0]) == ("loss/critic" in metrics[0]) == has_values


@pytest.mark.parametrize("algorithm", ["grpo", "flowrl", "dvpo"])
def test_every_algorithm_goes_on_where_it_stood(tmp_path, algorithm):
    whole = train(tmp_path, "whole", algorithm)
    train(tmp_path, "parts", algorithm, "--steps", "1")
    assert main(["train", "--resume", str(tmp_path / "parts"), "--steps", "2"]) == 0
    lines = (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    last = {k: v for k, v in json.loads(lines[-1]).items() if not k.startswith("perf/")}
    assert last == {k: v for k, v in whole[-1].items() if not k.startswith("perf/")}


def test_one_row_adds_an_algorithm(tmp_path, monkeypatch):
    row = Algorithm("PPO with short traces", "ours", {"critic.kind": "scalar", "target.lam": 0.5})
    monkeypatch.setitem(ALGORITHMS, "ppo-short", row)
    train(tmp_path, "run", "ppo-short", "--steps", "1")
    assert "lam: 0.5" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"critic.kind": "none"}, "gae and rank need a critic"),
        ({"algorithm": "ppo", "target.advantage": "rank"}, "predict a distribution"),
        ({"target.advantage": "rank", "risk": "wang"}, "risk must be neutral"),
        ({"algorithm": "grpo", "critic.kind": "scalar"}, "the others need none"),
        ({"algorithm": "flowrl", "policy.loss": "clip"}, "partition trains by it alone"),
        ({"algorithm": "grpo", "policy.loss": "trajectory_balance"}, "needs partition"),
        ({"algorithm": "grpo", "rollout.samples": 1}, "rollout.samples: is 1, must be at least 2"),
        ({"algorithm": "grpo", "target.winsorise": 0.5}, "advantage = group does not read it"),
        ({"algorithm": "grpo", "risk": "wang"}, "group does not read it, only gae, rank"),
    ],
)
def test_what_does_not_go_together(settings, said):
    with pytest.raises(ConfigError, match=said):
        build_config(settings)


def test_no_critic_predicts_nothing(policy):
    critic = critic_of(policy, algorithm="grpo")
    assert isinstance(critic, NoCritic) and not list(critic.parameters())
    assert critic.estimate(make_rollout().samples) is None
