"""Advantages and critic targets from rollouts whose values are known."""

import dataclasses

import pytest
import torch
from small_rollouts import LENGTHS, T, make_estimate, make_rollout

from dfpo.config import build_config
from dfpo.policy import Samples
from dfpo.rollout import token_rewards
from dfpo.targets import Estimate, compute_targets, path_targets, whiten
from dfpo_kernels import FlowField, distributional_gae, lambda_mixture_targets


def scalar_gae(rewards, values, lengths, gamma, lam):
    """The textbook recursion, one answer at a time."""
    advantages = torch.zeros_like(values)
    for b, length in enumerate(lengths):
        trace = 0.0
        for t in reversed(range(length)):
            last = t == length - 1
            reward, following = (rewards[b], 0.0) if last else (0.0, values[b, t + 1])
            trace = reward + gamma * following - values[b, t] + gamma * lam * trace
            advantages[b, t] = trace
    return advantages


def test_reward_lies_on_the_last_token():
    rewards, last = token_rewards(torch.tensor([1.0, 2.0, 3.0, 4.0]), make_rollout().samples.mask)
    assert rewards.sum(-1).tolist() == [1.0, 2.0, 3.0, 4.0]
    assert [int(row.nonzero()) for row in last] == [4, 2, 0, 4]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("kind", ["gae", "lambda_mixture"])
def test_advantage_is_gae_of_the_mean(gamma, kind):
    config = build_config({"target.gamma": gamma, "target.lam": 0.8, "target.kind": kind})
    rollout, estimate = make_rollout(), make_estimate()
    targets = compute_targets(rollout, estimate, config, 0)
    expected = scalar_gae(rollout.rewards, estimate.quantiles.mean(-1), LENGTHS, gamma, 0.8)
    mask = rollout.samples.mask
    torch.testing.assert_close(targets.raw_advantages[mask], expected[mask], atol=1e-5, rtol=1e-5)


def test_mixture_at_the_ends_of_lambda():
    """lam 1: every particle has the return; lam 0: one step and the next state's particle."""
    rollout, estimate = make_rollout(), make_estimate()
    full = compute_targets(rollout, estimate, build_config({"target.target_lam": 1.0}), 0)
    step = compute_targets(rollout, estimate, build_config({"target.target_lam": 0.0}), 0)
    for b, length in enumerate(LENGTHS):
        assert (full.quantiles[b, :length] == rollout.rewards[b]).all()
        assert torch.equal(step.quantiles[b, : length - 1], estimate.quantiles[b, 1:length])
        assert (step.quantiles[b, length - 1] == rollout.rewards[b]).all()


def test_targets_do_not_depend_on_the_batch():
    config = build_config({})
    rollout, estimate = make_rollout(), make_estimate()
    whole = compute_targets(rollout, estimate, config, 0)
    rows = torch.tensor([3, 1])
    part = dataclasses.replace(
        rollout,
        samples=Samples(*(x[rows] for x in rollout.samples)),
        sample_ids=rollout.sample_ids[rows],
        rewards=rollout.rewards[rows],
    )
    some = compute_targets(
        part, Estimate(estimate.quantiles[rows], estimate.final[rows], None, None), config, 0
    )
    mask = part.samples.mask
    assert torch.equal(some.quantiles[mask], whole.quantiles[rows][mask])


def test_truncated_answers_bootstrap_when_asked():
    rollout = make_rollout(truncated=(True, False, False, False))
    estimate = make_estimate()
    settings = {"target.target_lam": 0.0, "target.lam": 0.0}
    plain = compute_targets(rollout, estimate, build_config(settings), 0)
    config = build_config({**settings, "target.bootstrap_on_truncation": True})
    cut = compute_targets(rollout, estimate, config, 0)
    torch.testing.assert_close(cut.quantiles[0, -1], rollout.rewards[0] + estimate.final[0])
    assert torch.equal(plain.quantiles[1:], cut.quantiles[1:])


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
    path = path_targets(field, rewards, rollout.samples.mask, rollout.sample_ids, config, 0)
    for b, length in enumerate(LENGTHS):
        assert path.mask[b].tolist() == [t + 1 < length for t in range(T)]
        for t in range(length - 1):
            assert torch.equal(path.field.bias[b, t], field.bias[b, t + 1])
            assert path.rewards[b, t].item() == pytest.approx(rewards[b, t].item(), rel=1e-5)
            assert path.discount[b, t].item() == 0.5


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
    .21 ((1 - l^5)^2 + l^10) = .1085 at l = .9; the law itself has .21."""
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
