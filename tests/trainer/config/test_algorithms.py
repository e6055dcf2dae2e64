"""Every algorithm of the table: its critic, and a run of it."""

import dataclasses
import json

import pytest
import torch
from small_rollouts import make_rollout

from dfpo.__main__ import main
from dfpo.config import ALGORITHMS, ConfigError, build_config
from dfpo.config.algorithms import Algorithm
from dfpo.config.rules import only_read, predicts
from dfpo.config.types import Counts, CriticTargets, Samples
from dfpo.method.critics import build_critic
from dfpo.method.critics.none import NoCritic
from dfpo.method.critics.partition import LogPartition
from dfpo.method.critics.quantile import QuantileCritic
from dfpo.method.critics.scalar import ScalarCritic
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy, token_logprobs
from dfpo.run.setup import build_optimizers, complete

SMALL = {
    "steps": 2, "critic.warmup_steps": 0, "eval.prompts": 1, "plots": "false",
    "rollout.prompts": 3, "rollout.samples": 2, "critic.num_quantiles": 8, "eval.examples": 0,
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


def targets_for(mask, quantiles):
    zeros = torch.zeros(mask.shape)
    return CriticTargets(quantiles=quantiles, spread=zeros)


class Known(QuantileCritic):
    """A quantile critic whose heads say what they are told, in flow units."""

    def __init__(self, policy, told, **settings):
        config = build_config({"algorithm": "dvpo", **settings})
        config = complete(config, policy, torch.tensor([0.0, 1.0]))
        super().__init__(policy.base_model, 0.5, 0.5, config)
        self.told = told

    def quantiles(self, samples):
        return self.told


def test_dvpo_terms_by_hand(policy):
    """Two heads, one answer of one token, two quantiles; range [0, 1], so units are halves."""
    told = torch.tensor([[0.0, 2.0], [1.0, 3.0]]).view(2, 1, 1, 2).expand(2, 1, 2, 2)
    coefs = {"critic.kappa": 0.0, "critic.tail": 0.5, "critic.curvature": 0.0}
    critic = Known(policy, told, **coefs)
    mask = torch.ones(1, 1, dtype=torch.bool)
    samples = Samples(torch.zeros(1, 2), torch.ones(1, 2), mask, torch.zeros(1).bool())
    # Targets 0.5 and 1.5 of return are 0 and 2 in flow units.
    loss, terms = critic.loss(
        samples, targets_for(mask, torch.tensor([[[0.5, 1.5]]])), Counts(1, 1)
    )
    # Pinball at levels 1/4, 3/4, mean over both axes:
    #   head 0, q (0, 2), y (0, 2): q 0: u 0, 2 -> .25 * 2; q 2: u -2, 0 -> .25 * 2: 1 / 4
    #   head 1, q (1, 3), y (0, 2): q 1: u -1, 1 -> .75 + .25; q 3: u -3, -1 -> .25 * 4: 2 / 4
    assert terms["quantile"].item() == pytest.approx((0.25 + 0.5) / 2)
    assert terms["consistency"].item() == pytest.approx(1.0)  # (q_0 - q_1)^2 = 1 everywhere
    # Ensemble (.5, 2.5), tails of one quantile: differences .5 and .5, squared and added.
    assert terms["risk"].item() == pytest.approx(0.5)
    assert terms["mean_shift"].item() == 0.0  # mean y 1 is below mean q 1.5
    assert terms["tail_shape"].item() == 0.0  # a single point has no variance
    expected = 0.375 + 1.0 * 1.0 + 0.1 * 0.5
    assert loss.item() == pytest.approx(expected)


def test_an_ensembles_value_is_its_heads_mean(policy):
    told = torch.tensor([[0.0, 2.0], [1.0, 3.0]]).view(2, 1, 1, 2).expand(2, 1, 2, 2)
    estimate = Known(policy, told).estimate(None)
    assert estimate.quantiles.flatten().tolist() == [0.75, 1.75]  # (.5, 2.5) / 2 + .5


def some_samples(policy, prompt=6, answer=5, padding=0):
    """Two equal rows of tokens, the second with padding on both sides."""
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (1, prompt + answer), generator=draws)
    left, right = torch.zeros(1, padding, dtype=torch.int64), torch.zeros(1, padding).long()
    ids = torch.cat([left, ids, right], 1)
    kept = torch.zeros(1, ids.shape[1], dtype=torch.int64)
    kept[:, padding : padding + prompt + answer] = 1
    mask = torch.cat([torch.ones(1, answer), torch.zeros(1, padding)], 1).bool()
    return Samples(ids, kept, mask, torch.zeros(1).bool())


def test_the_least_of_several_heads_is_the_value(policy):
    critic = critic_of(policy, algorithm="robust-ppo")
    assert isinstance(critic, ScalarCritic)
    samples = some_samples(policy)
    values = critic.values(samples)
    assert values.shape[-1] == 4 and len(values[0, 0].unique()) == 4
    least = torch.tensor([min(row.tolist()) for row in values[0, :-1]])
    found = critic.estimate(samples)
    torch.testing.assert_close(found.quantiles[0, :, 0], least * 0.5 + 0.5)
    # Each head has the same targets: 0.5 (v_k - y)^2, a mean over heads and tokens.
    loss, _ = critic.loss(samples, targets_for(samples.mask, torch.ones(1, 5, 1)), Counts(5, 1))
    by_hand = sum(0.5 * (v - 1.0) ** 2 for row in values[0, :-1].tolist() for v in row) / 20
    assert loss.item() == pytest.approx(by_hand, rel=1e-4)


def test_ridge_control_has_the_flow_heads_conditioner(policy):
    plain = critic_of(policy, algorithm="ppo")
    ridge = critic_of(policy, algorithm="ppo-ridge")
    flow = critic_of(policy, algorithm="dfpo")

    def shapes(module):
        return {k: v.shape for k, v in module.state_dict().items()}

    assert shapes(ridge.head[0]) == shapes(flow.head.conditioner)
    assert shapes(plain.head) == {"weight": (1, 64), "bias": (1,)}
    assert (ridge.estimate(some_samples(policy)).quantiles == 0.5).all()


def test_log_partition_sees_the_prompt_alone(policy):
    critic = critic_of(policy, algorithm="flowrl")
    assert isinstance(critic, LogPartition)

    def found(samples):
        with critic.watch(policy) as hidden:
            token_logprobs(policy, samples, 1.0)
        return critic.log_partition(hidden[0], samples)

    samples = some_samples(policy)
    changed = samples.input_ids.clone()
    changed[:, -2] = (changed[:, -2] + 1) % 60
    plain = found(samples)
    torch.testing.assert_close(found(dataclasses.replace(samples, input_ids=changed)), plain)
    torch.testing.assert_close(found(some_samples(policy, padding=3)), plain)
    changed[:, 2] = (changed[:, 2] + 1) % 60
    assert (found(dataclasses.replace(samples, input_ids=changed)) - plain).abs() > 1e-4


def test_log_partition_learns_with_the_policy(policy):
    critic = critic_of(policy, algorithm="flowrl")
    config = complete(build_config({"algorithm": "flowrl"}), policy, torch.tensor([0.0]))
    optimizer, own = build_optimizers(policy, critic, config)
    assert own is None
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in (*policy.parameters(), *critic.parameters())}
    with critic.watch(policy) as hidden:
        token_logprobs(policy, some_samples(policy), 1.0)
    critic.log_partition(hidden[0], some_samples(policy)).sum().backward()
    assert policy.get_input_embeddings().weight.grad.abs().sum() > 0
    policy.zero_grad()


def test_no_critic_predicts_nothing(policy):
    critic = critic_of(policy, algorithm="grpo")
    assert isinstance(critic, NoCritic) and not list(critic.parameters())
    assert critic.estimate(make_rollout().samples) is None
