"""Advantages by hand."""

import dataclasses

import pytest
import torch
from small_rollouts import LENGTHS, T, make_estimate, make_rollout

from dfpo.config import ConfigError, build_config
from dfpo.config.choices import ADVANTAGES
from dfpo.config.types import Estimate
from dfpo.method.advantages import Returns, group_quantile, rank_advantage
from dfpo.method.targets import compute_targets
from dfpo_kernels import distributional_gae


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
    rollout = make_rollout((1.0, 2.0, 3.0, 4.0))
    returns = Returns(rollout, rollout.rewards, None, build_config({}))
    rewards, last = returns.token_rewards, returns.last
    assert rewards.sum(-1).tolist() == [1.0, 2.0, 3.0, 4.0]
    assert [int(row.nonzero()) for row in last] == [4, 2, 0, 4]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("kind", ["gae", "lambda_mixture"])
def test_advantage_is_gae_of_the_mean(gamma, kind):
    settings = {"target.gamma": gamma, "target.lam": 0.8, "target.kind": kind}
    config = build_config({"algorithm": "dfpo-mean", **settings})
    rollout, estimate = make_rollout(), make_estimate()
    targets = compute_targets(rollout, estimate, config, 0)
    expected = scalar_gae(rollout.rewards, estimate.quantiles.mean(-1), LENGTHS, gamma, 0.8)
    mask = rollout.samples.mask
    torch.testing.assert_close(targets.raw_advantages[mask], expected[mask], atol=1e-5, rtol=1e-5)


def test_truncated_answers_bootstrap_when_asked():
    rollout = make_rollout(truncated=(True, False, False, False))
    estimate = make_estimate()
    settings = {"target.target_lam": 0.0, "target.lam": 0.0}
    plain = compute_targets(rollout, estimate, build_config(settings), 0)
    config = build_config({**settings, "target.bootstrap_on_truncation": True})
    cut = compute_targets(rollout, estimate, config, 0)
    torch.testing.assert_close(cut.critic.quantiles[0, -1], rollout.rewards[0] + estimate.final[0])
    assert torch.equal(plain.critic.quantiles[1:], cut.critic.quantiles[1:])


RANGE = {"reward.low": 0.0, "reward.high": 2.0}


ROW = lambda value, length: [value] * length + [0.0] * (T - length)  # noqa: E731


def targets_of(settings, rollout=None, estimate=None):
    return compute_targets(rollout or make_rollout(), estimate, build_config(settings), 0)


def test_group_advantages_by_hand():
    # Rewards 1, 0 | 1, 0.5. Means 0.5 | 0.75, sample deviations sqrt(.5) | sqrt(.125): both
    # standardise to +-.70711.
    found = targets_of({"algorithm": "grpo"}).advantages
    expected = [ROW(v, n) for v, n in zip((1, -1, 1, -1), LENGTHS, strict=True)]
    torch.testing.assert_close(found, 0.70711 * torch.tensor(expected), atol=1e-4, rtol=0)
    found = targets_of({"algorithm": "dr-grpo"}).advantages
    expected = [ROW(v, n) for v, n in zip((0.5, -0.5, 0.25, -0.25), LENGTHS, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_groups_are_prompts_whatever_is_left_of_them():
    """An answer whose fellows have no reward learns nothing; equal rewards teach nothing."""
    rollout = make_rollout((1.0, 0.0, 1.0, 1.0))
    rollout = dataclasses.replace(rollout, groups=torch.tensor([7, 3, 5, 5]))
    for algorithm in ("grpo", "dr-grpo"):
        assert targets_of({"algorithm": algorithm}, rollout).advantages.abs().max() == 0


def test_a_quantile_as_baseline_by_hand():
    # Of 1, 0 the level .4 is reached by 0, of 1, .5 by .5; sample deviations sqrt(.5), sqrt(.125).
    found = targets_of({"algorithm": "qae"}).advantages
    expected = [ROW(v, n) for v, n in zip((2**0.5, 0, 2**0.5, 0), LENGTHS, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)
    # Above a half the higher one is the baseline: only the failure is left.
    found = targets_of({"algorithm": "qae", "target.quantile": 0.6}).advantages
    expected = [ROW(v, n) for v, n in zip((0, -(2**0.5), 0, -(2**0.5)), LENGTHS, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-4, rtol=0)
    assert targets_of({"algorithm": "qae"}, make_rollout((3.0,) * 4)).advantages.abs().max() == 0


@pytest.mark.parametrize("right, baseline", [(2, 0.0), (3, 1.0)])
def test_a_quantile_has_two_regimes(right, baseline):
    """Five answers at a level of .5: of two right ones the successes count, of three the rest."""
    rewards = torch.zeros(5)
    rewards[:right] = 1

    class Given:
        mask = torch.ones(5, 1, dtype=torch.bool)
        token_rewards = rewards.unsqueeze(-1)
        config = build_config({"algorithm": "qae", "target.quantile": 0.5})

        class rollout:
            groups = torch.zeros(5, dtype=torch.int64)

    spread = rewards.std().item() + 1e-6
    found = group_quantile(Given)[:, 0]
    assert found.tolist() == pytest.approx([(r - baseline) / spread for r in rewards.tolist()])


def test_leave_one_out_by_hand():
    # Rewards 1, 0 | 1, .5: each less the other one; the KL penalty is 0 where policies are equal.
    found = targets_of({"algorithm": "rloo"}).advantages
    expected = [ROW(v, n) for v, n in zip((1, -1, 0.5, -0.5), LENGTHS, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected))
    alone = dataclasses.replace(make_rollout(), groups=torch.tensor([7, 3, 5, 5]))
    assert targets_of({"algorithm": "rloo"}, alone).advantages[:2].abs().max() == 0


def test_pretraining_with_decoupled_traces_by_hand():
    """The critic learns the whole return, the policy's traces stay at .95."""
    rollout, estimate = make_rollout(), make_estimate()
    found = targets_of({"algorithm": "vc-ppo"}, rollout, estimate)
    mask = rollout.samples.mask
    returns = rollout.rewards.view(4, 1, 1).expand_as(found.critic.quantiles)
    torch.testing.assert_close(found.critic.quantiles[mask], returns[mask])
    values = estimate.quantiles.mean(-1)
    expected = scalar_gae(rollout.rewards, values, LENGTHS, 1.0, 0.95)
    torch.testing.assert_close(found.raw_advantages[mask], expected[mask], atol=1e-5, rtol=1e-5)
    assert build_config({"algorithm": "vc-ppo"}).critic.warmup_steps == 30


FLIPS = {"noise": "a:fp=.2,fn=.1;b:flip=.25", "reward.low": -1.0, "reward.high": 1.0}


def by_domain(rewards, clean=None):
    """Two answers of domain a, then two of b."""
    rollout = make_rollout(rewards)
    rows = [{"domain": name} for name in "aabb"]
    clean = rollout.rewards if clean is None else torch.tensor(clean)
    return dataclasses.replace(
        rollout,
        answers=dataclasses.replace(rollout.answers, rows=rows),
        clean_rewards=clean,
    )


def test_backward_correction_by_hand():
    # Shares s of the range: a: (s - .2) / .7, b: (s - .25) / .5, back in [-1, 1].
    config = build_config(FLIPS | {"algorithm": "ppo-backward"})
    rollout = by_domain((1.0, -1.0, 1.0, -1.0))
    rewards = Returns(rollout, rollout.rewards, None, config).token_rewards.sum(-1)
    expected = [-1 + 1.6 / 0.7, -1 - 0.4 / 0.7, 2.0, -2.0]
    assert rewards.tolist() == pytest.approx(expected)
    # Its mean over flips is the clean reward: .9 of the right ones of a are told as right.
    assert 0.9 * expected[0] + 0.1 * expected[1] == pytest.approx(1)
    assert 0.2 * expected[0] + 0.8 * expected[1] == pytest.approx(-1)
    # Of clean rewards nothing is taken off.
    estimate = Estimate(torch.zeros(4, T, 1), torch.zeros(4, 1))
    rollout = by_domain((1.0, -1.0, 1.0, -1.0), (1.0, 1.0, -1.0, -1.0))
    found = compute_targets(rollout, estimate, config, 0)
    ends = [found.clean_advantages[i, n - 1].item() for i, n in enumerate(LENGTHS)]
    assert ends == pytest.approx([1, 1, -1, -1])


def test_forward_correction_by_hand():
    # Told right: the rate of false negatives; told wrong: that rate less 1.
    settings = FLIPS | {"algorithm": "reinforce-forward"}
    found = targets_of(settings, by_domain((1.0, -1.0, 1.0, -1.0))).advantages
    weights = (0.1, -0.9, 0.25, -0.75)
    expected = [ROW(v, n) for v, n in zip(weights, LENGTHS, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"noise": "heavy=1"}, "must be of flips alone with target.correction = backward"),
        ({"noise": "flip=.2", "reward.space": "cdf"}, "must be raw with target.correction"),
        ({"noise": "math:flip=.5"}, "must leave some labels right on average"),
    ],
)
def test_what_no_correction_knows(settings, said):
    with pytest.raises(ConfigError, match=said):
        build_config(settings | {"algorithm": "ppo-backward"})


def test_reward_to_go_with_a_kl_penalty_by_hand():
    # Every token's log-ratio to the first policy is 0.5, the penalty 0.1: each costs 0.05.
    # Two tokens left: 1 - 0.1, one left: 1 - 0.05.
    rollout = make_rollout((1.0, 0.0, 1.0, 0.5))
    rollout = dataclasses.replace(rollout, old_logprobs=torch.full((4, T), 0.5))
    settings = {"algorithm": "reinforce++", "target.kl_penalty": 0.1}
    found = targets_of(settings, rollout)
    assert found.raw_advantages[0].tolist() == pytest.approx([0.75, 0.8, 0.85, 0.9, 0.95])
    assert found.raw_advantages[2, 0].item() == pytest.approx(0.95)
    kept = found.advantages[rollout.samples.mask]
    assert kept.mean().item() == pytest.approx(0, abs=1e-6)
    assert kept.std(correction=0).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("algorithm", ["ppo", "dfpo-mean", "reinforce++"])
def test_rewards_cut_to_their_range_by_hand(algorithm):
    settings = {"algorithm": algorithm, "reward.low": -1, "reward.high": 2}
    rollout = make_rollout((10.5, -9.0, 2.0, 0.5))
    for clip, kept in ((True, [2.0, -1.0, 2.0, 0.5]), (False, [10.5, -9.0, 2.0, 0.5])):
        config = build_config({**settings, "reward.clip": clip})
        assert (
            Returns(rollout, rollout.rewards, None, config).token_rewards.sum(-1).tolist() == kept
        )


def test_winsorised_rewards_by_hand():
    # Value 0.5 before each last token, window 0.1 * 2: rewards 1, 0, 1, 0.5 -> .7, .3, .7, .5.
    quantiles = torch.stack([torch.full((4, T), 0.4), torch.full((4, T), 0.6)], -1)
    estimate = Estimate(quantiles, torch.zeros(4, 2))
    config = build_config({"algorithm": "dfpo-mean", "target.winsorise": 0.1, **RANGE})
    rollout = make_rollout()
    rewards = Returns(rollout, rollout.rewards, estimate, config).token_rewards
    assert rewards.sum(-1).tolist() == pytest.approx([0.7, 0.3, 0.7, 0.5])
    settings = {"algorithm": "ppo-winsorised", "target.winsorise": 0.1, **RANGE}
    settings |= {"target.lam": 1.0, "target.target_lam": 1.0}
    found = targets_of(settings, estimate=estimate)
    assert found.raw_advantages[:, 0].tolist() == pytest.approx([0.2, -0.2, 0.2, 0.0], abs=1e-6)
    assert found.critic.quantiles[0, 0].tolist() == pytest.approx([0.7, 0.7])  # lam 1: the return


def test_rank_advantages_by_hand():
    # Z is 0, 0, 1, 4. Of G = 1 it is below with chance 1/2, above with 1/4; of 0: 0 and 1/2;
    # of 10 and 1000 always below; of the distribution 0 and 10, half each: (-1/2 + 1) / 2.
    distribution = torch.tensor([4.0, 0.0, 1.0, 0.0]).expand(1, 5, 4)
    returns = torch.tensor([[1.0, 1], [0, 0], [10, 10], [1000, 1000], [0, 10]]).unsqueeze(0)
    support = torch.tensor([0.0, 1, 4, 10, 1000])
    found = rank_advantage(distribution, returns, support)
    assert found[0].tolist() == [0.25, -0.5, 1.0, 1.0, 0.25]


@pytest.mark.parametrize(
    ("value", "support", "expected"),
    [
        # Half way from 0 to 1 a value is either: below 1 with chance 1/2, above 0 with 1/2.
        (0.5, [0.0, 1.0], [-0.5, 0.5]),
        (0.25, [0.0, 1.0], [-0.25, 0.75]),
        # A return of 1/2 is possible: .25 is half of the time below it, half of the time it is 0.
        (0.25, [0.0, 0.5, 1.0], [-0.5, 0.5, 1.0]),
        # Nothing lies beyond the ends.
        (7.0, [0.0, 1.0], [-1.0, 0.0]),
        (-7.0, [0.0, 1.0], [0.0, 1.0]),
        (3.0, [2.0], [0.0]),
    ],
)
def test_a_value_between_two_returns_is_either(value, support, expected):
    """Of returns at each point of the support."""
    returns = torch.tensor(support).view(1, -1, 1)
    values = torch.full((1, len(support), 3), value)
    found = rank_advantage(values, returns, torch.tensor(support))
    assert found[0].tolist() == pytest.approx(expected)


def test_ranks_know_small_differences_of_large_rewards():
    """A million and a million and one: predictions half way are either, half of the time each."""
    support = torch.tensor([1e6, 1e6, 1e6 + 1])
    values = torch.full((1, 2, 31), 1e6 + 0.5)  # 31 million and 31 is no float32
    found = rank_advantage(values, support[1:].view(1, 2, 1), support)
    assert found[0].tolist() == [-0.5, 0.5]


def test_ranks_of_smooth_predictions_are_the_projections():
    """Against both projections written out, of every value and every return."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 3, 8, generator=generator) * 3 - 1
    returns = torch.rand(2, 3, 4, generator=generator) * 3 - 1
    support = torch.tensor([-0.5, 0.0, 0.1, 0.7, 1.5])
    found = rank_advantage(values, returns, support)

    def projected(x):
        x = x.clamp(-0.5, 1.5)
        right = torch.searchsorted(support, x).clamp_min(1)
        low, high = support[right - 1], support[right]
        share = (x - low) / (high - low)
        return ((1 - share, low), (share, high))

    expected = sum(
        own.unsqueeze(-1) * other.unsqueeze(-2) * (g.unsqueeze(-2) - z.unsqueeze(-1)).sign()
        for own, z in projected(values)
        for other, g in projected(returns)
    ).mean((-1, -2))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_rank_advantages_are_gae_where_all_returns_are_0_or_1_and_bounded_elsewhere():
    quantiles = torch.zeros(4, T, 4)
    quantiles[..., 3] = 1
    estimate = Estimate(quantiles, torch.zeros(4, 4))
    settings = {"target.lam": 1.0, "critic.num_quantiles": 4, "target.advantage": "rank"}
    mask = make_rollout().samples.mask
    binary = make_rollout((1.0, 0.0, 1.0, 0.0))
    rank = targets_of(settings, binary, estimate)
    mean = targets_of({**settings, "target.advantage": "gae"}, binary, estimate)
    torch.testing.assert_close(rank.raw_advantages[mask], mean.raw_advantages[mask])
    wild = targets_of(settings, make_rollout((10.0, -10.0, 1.0, 0.0)), estimate).raw_advantages
    # Above everything 1, below everything -1; 1 is above 3 of 4, 0 is below 1 of 4.
    assert wild[:, 0].tolist() == [1.0, -1.0, 0.75, -0.25]


# An answer a b [tool tool] c with reward 1, values .2 .4 (9 9) .5, gamma .9, lam .5.
HOLES = torch.tensor([[True, True, False, False, True]])
TOOL_VALUES = torch.tensor([[0.2, 0.4, 9.0, 9.0, 0.5]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        # c: 1 - .5 = .5;  b: .9 * .5 - .4 + .45 * .5 = .275;  a: .9 * .4 - .2 + .45 * .275
        ("carry", [0.28375, 0.275, 0.5]),
        # tools are steps of value 0: .9 * .5 + .45 * .5 = .675;  .45 * .675 = .30375
        # b: -.4 + .45 * .30375;  a: .16 + .45 * -.2633125
        ("zero", [0.041509375, -0.2633125, 0.5]),
        # tools are steps of value 9: .45 - 9 + .225 = -8.325;  8.1 - 9 + .45 * -8.325 = -4.64625
        # b: 8.1 - .4 + .45 * -4.64625;  a: .16 + .45 * 5.6091875
        ("none", [2.684134375, 5.6091875, 0.5]),
    ],
)
def test_mask_modes_with_a_tool_in_the_middle(mode, expected):
    rewards = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0]])
    advantages, _ = distributional_gae(
        rewards, TOOL_VALUES.unsqueeze(-1), HOLES, gamma=0.9, lam=0.5, mask_mode=mode
    )
    assert advantages[HOLES].flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"algorithm": "ppo", "target.lam": 0.5}, [0.28375, 0.275, 0.5]),
        ({"algorithm": "dfpo-mean", "target.lam": 0.5}, [0.28375, 0.275, 0.5]),
        # Returns .81 .9 1 lie between 0 and 1, the returns that there can be: less .2 .4 .5.
        ({"algorithm": "dfpo-rank", "target.lam": 1.0}, [0.61, 0.5, 0.5]),
        ({"algorithm": "reinforce++"}, [0.81, 0.9, 1.0]),
        # Rewards 1 and 0: mean .5, standard deviation .7071 of a sample.
        ({"algorithm": "grpo"}, [0.5 / (0.5**0.5 + 1e-6)] * 3),
        ({"algorithm": "dr-grpo"}, [0.5] * 3),
    ],
)
def test_a_tools_tokens_are_no_steps(settings, expected):
    """Every advantage by hand: its tokens take neither reward nor discount, and pass values on."""
    config = build_config({"target.gamma": 0.9, "reward.low": 0.0, "reward.high": 1.0, **settings})
    rollout = make_rollout((1.0, 0.0, 1.0, 0.0))
    mask = rollout.samples.mask.clone()
    mask[0] = HOLES[0]
    samples = dataclasses.replace(rollout.samples, mask=mask)
    rollout = dataclasses.replace(rollout, samples=samples)
    values = TOOL_VALUES.expand(4, -1).unsqueeze(-1).contiguous()
    estimate = Estimate(quantiles=values, final=torch.zeros(4, 1))
    raw = ADVANTAGES[config.target.advantage].load()(
        Returns(rollout, rollout.rewards, estimate, config)
    )
    assert raw[0][HOLES[0]].tolist() == pytest.approx(expected, abs=1e-6)
