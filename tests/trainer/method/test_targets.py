"""Advantages and critic targets from rollouts whose values are known."""

import dataclasses

import pytest
import torch
from small_rollouts import LENGTHS, T, make_estimate, make_rollout

from dfpo.config import build_config
from dfpo.config.types import Estimate
from dfpo.method.targets import compute_targets, path_targets, whiten
from dfpo.run.diagnostics import rollout_metrics
from dfpo_kernels import FlowField, distributional_gae, lambda_mixture_targets


def test_mixture_at_the_ends_of_lambda():
    """lam 1: every particle has the return; lam 0: one step and the next state's particle."""
    rollout, estimate = make_rollout(), make_estimate()
    full = compute_targets(rollout, estimate, build_config({"target.target_lam": 1.0}), 0)
    step = compute_targets(rollout, estimate, build_config({"target.target_lam": 0.0}), 0)
    for b, length in enumerate(LENGTHS):
        assert (full.critic.quantiles[b, :length] == rollout.rewards[b]).all()
        assert torch.equal(step.critic.quantiles[b, : length - 1], estimate.quantiles[b, 1:length])
        assert (step.critic.quantiles[b, length - 1] == rollout.rewards[b]).all()


def test_targets_do_not_depend_on_the_batch():
    config = build_config({})
    rollout, estimate = make_rollout(), make_estimate()
    whole = compute_targets(rollout, estimate, config, 0)
    rows = torch.tensor([3, 1])
    part = dataclasses.replace(
        rollout,
        samples=rollout.samples.select(rows),
        answers=rollout.answers.select(rows),
        rewards=rollout.rewards[rows],
        clean_rewards=rollout.clean_rewards[rows],
    )
    some = compute_targets(
        part, Estimate(estimate.quantiles[rows], estimate.final[rows]), config, 0
    )
    mask = part.samples.mask
    assert torch.equal(some.critic.quantiles[mask], whole.critic.quantiles[rows][mask])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"algorithm": "dfpo-rank"},
        {"algorithm": "grpo"},
        {"algorithm": "dfpo-mean", "risk": "cvar-lower"},
        {"target.winsorise": 0.2},
        {"target.bootstrap_on_truncation": True},
    ],
)
def test_advantages_of_clean_rewards_have_the_clean_sign(settings):
    """Whatever makes the advantage: without noise all signs agree."""
    config = build_config({"reward.low": 0, "reward.high": 1, **settings})
    rollout = make_rollout(truncated=(True, False, True, False))
    estimate = make_estimate() if config.critic.kind != "none" else None
    targets = compute_targets(rollout, estimate, config, 0)
    found = rollout_metrics(rollout, estimate, estimate, targets, "reward")
    assert found["advantage/sign_agreement"] == 1


def test_a_flipped_reward_turns_the_signs_of_its_answer():
    """At lam 1 and Z in (0, 1) an answer's advantages have the sign of its reward; the first, 5 of
    all 14 tokens, was told the opposite."""
    config = build_config({"target.lam": 1.0, "reward.low": 0, "reward.high": 1})
    rollout, estimate = make_rollout((0.0, 0.0, 1.0, 1.0)), make_estimate()
    rollout = dataclasses.replace(rollout, clean_rewards=torch.tensor([1.0, 0.0, 1.0, 1.0]))
    targets = compute_targets(rollout, estimate, config, 0)
    found = rollout_metrics(rollout, estimate, estimate, targets, "reward")
    assert found["advantage/sign_agreement"] == pytest.approx(9 / 14)


def test_whiten():
    mask = torch.tensor([[True, True, False], [True, True, False]])
    x = torch.tensor([[1.0, 2.0, 99.0], [3.0, 4.0, 99.0]])
    white = whiten(x, mask)
    # mean 2.5, variance 1.25
    assert white[mask].tolist() == pytest.approx([(v - 2.5) / 1.25**0.5 for v in (1, 2, 3, 4)])
    assert white[~mask].tolist() == [0.0, 0.0]


def test_path_targets_one_token_on():
    """path_lam 0 looks one token on: gamma times the next state's flow, reward of this token."""
    config = build_config({"target.path_lam": 0.0, "target.gamma": 0.5})
    rollout = make_rollout()
    rewards = torch.rand(4, T)
    field = FlowField(
        torch.arange(4 * T * 2.0).reshape(4, T, 2), torch.rand(4, T, 2), torch.rand(4, T),
        torch.rand(2), torch.rand(2),
    )  # fmt: skip
    path = path_targets(field, rewards, rollout.samples.mask, rollout.answers.sample_ids, config, 0)
    for b, length in enumerate(LENGTHS):
        assert path.mask[b].tolist() == [t + 1 < length for t in range(T)]
        for t in range(length - 1):
            assert torch.equal(path.field.bias[b, t], field.bias[b, t + 1])
            assert path.rewards[b, t].item() == pytest.approx(rewards[b, t].item(), abs=1e-5)
            assert path.discount[b, t].item() == 0.5


def test_path_targets_step_over_a_tool():
    """From a and b of a b [tool tool] c: one counted token on, a discount and a reward each."""
    config = build_config({"target.path_lam": 0.0, "target.gamma": 0.5})
    mask = torch.tensor([[True, True, False, False, True]])
    rewards = torch.tensor([[1.0, 2.0, 0.0, 0.0, 4.0]])
    zeros = torch.zeros(1, 5)
    position = torch.arange(5.0).view(1, 5, 1)
    field = FlowField(position, zeros[..., None], zeros, torch.ones(1), torch.ones(1))
    path = path_targets(field, rewards, mask, torch.arange(1), config, 0)
    assert path.mask.tolist() == [[True, True, False, False, False]]
    assert path.field.bias[0, :2, 0].tolist() == [1.0, 4.0]
    assert path.rewards[0, :2].tolist() == [1.0, 2.0]
    assert path.discount[0, :2].tolist() == [0.5, 0.5]


def test_path_horizon_is_geometric():
    """Mean horizon 1 / (1 - lam) = 5; the return in between is the discounted sum."""
    config = build_config({"target.path_lam": 0.8, "target.gamma": 0.9})
    count, length = 400, 60
    mask = torch.ones(count, length, dtype=torch.bool)
    rewards = torch.rand(count, length)
    zeros = torch.zeros(count, length)
    position = torch.arange(length).expand(count, length).float()
    field = FlowField(position[..., None], zeros[..., None], zeros, torch.ones(1), torch.ones(1))
    path = path_targets(field, rewards, mask, torch.arange(count), config, 0)
    horizon = (path.field.bias[..., 0] - position)[:, :20]
    assert horizon.min() == 1
    # The standard deviation of one horizon is sqrt(.8) / .2 = 4.5; 8000 draws.
    assert horizon.mean().item() == pytest.approx(5.0, abs=5 * 4.5 / 8000**0.5)
    t, steps = 3, int(horizon[0, 3])
    expected = sum(0.9**i * rewards[0, t + i] for i in range(steps))
    assert path.rewards[0, t].item() == pytest.approx(expected.item(), rel=1e-4)
    assert path.discount[0, t].item() == pytest.approx(0.9**steps, rel=1e-5)


def test_quantile_wise_average_loses_the_spread():
    """Why the critic's targets are a mixture: return R ~ Bernoulli(.3) six tokens away, exact
    values q_i before each. The average is (1 - l^5) q_i + l^5 R, of variance
    .21 ((1 - l^5)^2 + l^10) = .1085 at l = .9; the distribution itself has .21."""
    tokens, quantiles, count = 6, 500, 2000
    levels = (torch.arange(quantiles) + 0.5) / quantiles
    values = (levels > 0.7).float().expand(count, tokens, quantiles).contiguous()
    rewards = torch.zeros(count, tokens)
    rewards[: int(0.3 * count), -1] = 1.0
    mask = torch.ones(count, tokens)
    _, average = distributional_gae(rewards, values, mask, gamma=1.0, lam=0.9)
    mixture = lambda_mixture_targets(rewards, values, mask, gamma=1.0, lam=0.9, seed=0)
    assert average[:, 0].std().item() == pytest.approx(0.1085**0.5, abs=0.002)
    assert mixture[:, 0].std().item() == pytest.approx(0.21**0.5, abs=0.002)


RANGE = {"reward.low": 0.0, "reward.high": 2.0}


def targets_of(settings, rollout=None, estimate=None):
    return compute_targets(rollout or make_rollout(), estimate, build_config(settings), 0)


def test_bounded_advantages_are_bounded_before_they_are_whitened():
    # lam 1: the advantage is the return less the value. Range 2, bound 0.05 * 2 = 0.1.
    settings = {"algorithm": "ppo", "target.lam": 1.0, **RANGE}
    estimate = Estimate(torch.zeros(4, T, 1), torch.zeros(4, 1))
    plain = targets_of(settings, estimate=estimate)
    clipped = targets_of({**settings, "target.advantage_clip": 0.05}, estimate=estimate)
    mask = make_rollout().samples.mask
    assert torch.equal(plain.raw_advantages, clipped.raw_advantages)
    expected = whiten(plain.raw_advantages.clamp(-0.1, 0.1), mask)
    torch.testing.assert_close(clipped.advantages, expected)
    # Rewards 1, 0, 1, 0.5 at value 0: all but the zero meet the bound, so two numbers are left.
    assert len(clipped.advantages[mask].unique()) == 2


def test_expected_targets_are_the_mean_of_the_quantile_wise_average():
    estimate = make_estimate()
    found = targets_of({"algorithm": "dfpo-expected"}, estimate=estimate).critic.quantiles
    whole = targets_of({"target.kind": "gae"}, estimate=estimate).critic.quantiles
    mask = make_rollout().samples.mask
    assert (found == found[..., :1]).all()
    torch.testing.assert_close(found[mask][:, 0], whole[mask].mean(-1))


@pytest.mark.parametrize("value", [0.7, 333.3, 1e6, -1e-8])
def test_what_is_all_equal_has_no_advantage(value):
    """By rounding alone seven times .7 had .86, and moved a policy by nats (verl#4597)."""
    advantages = torch.full((1, 7), value)
    assert (whiten(advantages, torch.ones(1, 7, dtype=torch.bool)) == 0).all()

    rollout = make_rollout()
    same = dataclasses.replace(rollout, rewards=torch.full_like(rollout.rewards, value))
    for name in ("grpo", "dr-grpo"):
        config = build_config({"algorithm": name, "reward.low": -1e6, "reward.high": 1e6})
        assert (compute_targets(same, None, config, 0).advantages == 0).all()


def test_a_small_spread_on_a_large_offset_counts():
    advantages = torch.tensor([[1e6, 1e6 + 1]])
    found = whiten(advantages, torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(found, torch.tensor([[-1.0, 1.0]]), atol=1e-6, rtol=0)
