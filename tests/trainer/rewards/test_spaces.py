"""Rewards through running maps: by hand, both ways, whatever the rewards, across a resume."""

import dataclasses
import json
import math

import pytest
import torch
from scipy import stats
from small_rollouts import make_estimate, make_rollout

import dfpo
from dfpo.config import ConfigError, build_config
from dfpo.config.spaces import SPACES
from dfpo.method.targets import compute_targets
from dfpo.rewards.spaces import RewardSpace, asinh, cdf, standard
from dfpo.run.api import Run
from dfpo.run.train import train

RUNNING = [name for name in SPACES if name != "raw"]
SMALL = {
    "rollout.prompts": 4, "rollout.samples": 2, "eval.prompts": 0, "eval.examples": 0,
    "plots": False, "device": "cpu", "critic.num_quantiles": 8, "critic.warmup_steps": 2,
    "critic.warmup_epochs": 1, "rollout.max_new_tokens": 12,
}  # fmt: skip


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def space_of(kind, by=None, window=4096):
    settings = {"reward.space": kind, "reward.space_window": window}
    return RewardSpace.of(build_config(settings | ({"reward.space_by": by} if by else {})))


def rows(rollout, *columns):
    answers = dataclasses.replace(rollout.answers, rows=[dict(row) for row in columns])
    return dataclasses.replace(rollout, answers=answers)


def test_distribution_function_by_hand():
    # P(R < r) + P(R = r) / 2 of 1, 2, 2, 50 is 1/8, 4/8, 7/8; from 0 to 1: 0, 1/2, 1.
    found = cdf(numbers(50, 2, 1, 2))
    assert found.forward(numbers(1, 2, 50)).tolist() == [0, 0.5, 1]
    # Straight between, level beyond: 26 is half way from 2 to 50.
    assert found.forward(numbers(1.5, 26, 99, -9)).tolist() == [0.25, 0.75, 1, 0]
    assert found.inverse(numbers(0, 0.25, 0.75, 1, 2)).tolist() == [1, 1.5, 26, 50, 50]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_rewards_of_two_values_are_0_and_1_whatever_their_shares(share):
    told = torch.where(torch.arange(50) < 50 * share, 7.0, -3.0).double()
    found = cdf(told)
    assert found.forward(numbers(-3, 7)).tolist() == [0, 1]
    assert found.inverse(numbers(0, 0.5, 1)).tolist() == [-3, 2, 7]


def test_distribution_function_is_scipys_ranks():
    told = torch.randn(999, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    told[::3] = told[0]
    ranks = stats.rankdata(told.numpy())
    expected = (ranks - ranks.min()) / (ranks.max() - ranks.min())
    torch.testing.assert_close(cdf(told).forward(told), torch.from_numpy(expected))


def test_asinh_by_hand():
    # Median 2, absolute deviations 2, 1, 0, 1, 998: their median 1.
    found = asinh(numbers(0, 1, 2, 3, 1000))
    expected = [0, math.asinh(1 / 1.4826), math.asinh(998 / 1.4826)]
    assert found.forward(numbers(2, 3, 1000)).tolist() == pytest.approx(expected)
    # More than half are equal: the mean absolute deviation 2/4 in place of the median one, 0.
    found = asinh(numbers(1, 1, 1, 3))
    assert found.forward(numbers(3)).item() == pytest.approx(math.asinh(2 / (1.2533 * 0.5)))


def test_standard_by_hand():
    found = standard(numbers(1, 3, 5))  # standard deviation sqrt(8 / 3)
    assert found.forward(numbers(5)).item() == pytest.approx(2 / math.sqrt(8 / 3))


@pytest.mark.parametrize("kind", RUNNING)
@pytest.mark.parametrize("size, offset", [(1e6, 0), (1e-3, 0), (1e-3, 1e3), (1e30, 0)])
def test_maps_are_monotone_and_come_back(kind, size, offset):
    draws = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    told = offset + size * (2 * draws - 1)
    found = SPACES[kind].load()(told)
    mapped = found.forward(told.sort().values)
    assert mapped.isfinite().all() and (mapped.diff() > 0).all()
    torch.testing.assert_close(found.inverse(found.forward(told)), told, rtol=1e-9, atol=0)


@pytest.mark.parametrize("kind", RUNNING)
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-30])
def test_equal_rewards_are_in_the_middle(kind, value):
    told = torch.full((7,), value).double()
    found = SPACES[kind].load()(told)
    middle = (SPACES[kind].low + SPACES[kind].high) / 2
    torch.testing.assert_close(
        found.forward(told), torch.full_like(told, middle), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(found.inverse(found.forward(told)), told, rtol=1e-9, atol=0)


def test_the_window_forgets_and_groups_have_maps_of_their_own():
    space = space_of("cdf", "level", window=2)
    levels = [{"level": 1}, {"level": 1}, {"level": 2}, {"level": 2}]
    space.tell(rows(make_rollout((0.0, 1.0, 100.0, 200.0)), *levels))
    space.tell(rows(make_rollout((2.0, 3.0, 300.0, 400.0)), *levels))
    assert {name: told.tolist() for name, told in space.told.items()} == {
        "1": [2.0, 3.0], "2": [300.0, 400.0],
    }  # fmt: skip
    mapped = space.mapped(rows(make_rollout((2.0, 2.5, 300.0, 400.0)), *levels))
    assert mapped.rewards.tolist() == [0.0, 0.5, 0.0, 1.0]
    assert mapped.rewards is mapped.clean_rewards
    # A group of which none was told goes through all: 2, 3, 300, 400 are 0, 1/3, 2/3, 1.
    found = space.returns(torch.tensor([[0.0, 1 / 3, 1.0]]), [{"level": 9}])
    torch.testing.assert_close(found, torch.tensor([[2.0, 3.0, 400.0]]))


def test_raw_is_the_very_same_rollout():
    space, rollout, estimate = space_of("raw"), make_rollout(), make_estimate()
    space.tell(rollout)
    assert space.mapped(rollout) is rollout and not space.told
    assert space.readout(estimate, rollout.answers.rows) is estimate


@pytest.mark.parametrize("algorithm", ["ppo-cdf", "ppo-domain"])
def test_advantages_of_mapped_rewards_by_hand(algorithm):
    """Where values are 0 and the trace is 1, GAE is the mapped reward."""
    config = build_config({"algorithm": algorithm, "target.lam": 1.0})
    domains = [{"domain": "a"}, {"domain": "a"}, {"domain": "b"}, {"domain": "b"}]
    rollout = rows(make_rollout((0.0, 1.0, 50.0, 150.0)), *domains)
    space = RewardSpace.of(config)
    space.tell(rollout)
    estimate = dataclasses.replace(
        make_estimate(), quantiles=torch.zeros(4, 5, 1), final=torch.zeros(4, 1)
    )
    found = compute_targets(space.mapped(rollout), estimate, config, 0).raw_advantages[:, 0]
    # Ranks 0, 1, 2, 3 of 3; or minus and plus one standard deviation within each domain.
    expected = [0, 1 / 3, 2 / 3, 1] if algorithm == "ppo-cdf" else [-1, 1, -1, 1]
    assert found.tolist() == pytest.approx(expected)


def test_dfpo_learns_the_same_of_rewards_on_any_scale():
    """Its advantages and its critic's targets, where another unit and zero are told."""
    config = build_config({})
    assert (config.algorithm, config.target.advantage, config.reward.space) == (
        "dfpo", "rank", "cdf"
    )  # fmt: skip

    def learned(rewards):
        rollout, space = make_rollout(rewards), RewardSpace.of(config)
        space.tell(rollout)
        return compute_targets(space.mapped(rollout), make_estimate(), config, 0)

    rewards = (0.25, 0.5, -1.0, 8.0)
    one, other = learned(rewards), learned(tuple(1024 * r - 4096 for r in rewards))
    assert one.advantages.abs().max() > 0
    assert torch.equal(one.advantages, other.advantages)
    assert torch.equal(one.critic.quantiles, other.critic.quantiles)


def test_a_setting_that_the_space_does_not_read_is_refused():
    with pytest.raises(ConfigError, match="reward.space_by: is domain, but reward.space = raw"):
        build_config({"algorithm": "dfpo-mean", "reward.space_by": "domain"})
    with pytest.raises(ConfigError, match="reward.clip: is True, but reward.space = cdf"):
        build_config({"reward.space": "cdf", "reward.clip": True})


def metrics_of(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("perf/")} for line in lines
    ]


@pytest.mark.parametrize("kind, by", [("cdf", "domain"), ("asinh", None)])
def test_a_resumed_run_goes_on_with_the_same_maps(tmp_path, kind, by):
    settings = SMALL | {
        "algorithm": "dfpo-rank", "reward.space": kind, "noise": "heavy=1", "steps": 4,
        "runs_dir": str(tmp_path), "reward.space_window": 20,
    }  # fmt: skip
    settings |= {"reward.space_by": by} if by else {}
    whole = train(build_config(settings | {"name": "whole"}))
    part = train(build_config(settings | {"name": "part", "steps": 2}))
    Run(part).resume(steps=4)
    assert metrics_of(part) == metrics_of(whole)
    told = Run(whole).space.told
    assert all(torch.equal(told[name], x) for name, x in Run(part).space.told.items())
    assert set(told) == ({"math", "science", "dialogue"} if by else {"all"})


@pytest.mark.parametrize("algorithm", ["dfpo-rank", "ppo"])
def test_rewards_of_two_values_need_no_range(tmp_path, algorithm):
    """Told as -7 or 3 of nobody knows which range, they train as 0 and 1 of a known one do: the
    same policy, bit for bit."""

    def reward(completions, **columns):
        return [-7.0 + 10 * (len(text) % 2) for text in completions]

    def known(completions, **columns):
        return [float(len(text) % 2) for text in completions]

    settings = {k: v for k, v in SMALL.items() if algorithm != "ppo" or k != "critic.num_quantiles"}
    common = {"algorithm": algorithm, "runs_dir": str(tmp_path), "steps": 4, **settings}
    mapped = dfpo.train(reward=reward, name="mapped", **common, **{"reward.space": "cdf"})
    plain = dfpo.train(reward=known, name="plain", **common)
    for ours, theirs in zip(mapped.policy.parameters(), plain.policy.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    values, expected = (run.values("1 plus 2", "3").quantiles for run in (mapped, plain))
    torch.testing.assert_close(values, -7 + 10 * expected, atol=1e-5, rtol=1e-5)


WILD = {"vast": (-1e6, 1e6), "tiny": (0.0, 1e-3), "constant": (0.37, 0.37)}


@pytest.mark.parametrize("low, high", WILD.values(), ids=WILD)
@pytest.mark.parametrize("kind", RUNNING)
def test_no_scale_of_rewards_makes_nan_or_a_dead_critic(tmp_path, kind, low, high):
    def reward(completions, **columns):
        return [(low, high)[len(text) % 2] for text in completions]

    run = dfpo.train(
        reward=reward, task="suite:math", algorithm="dfpo-rank", runs_dir=str(tmp_path), steps=3,
        **SMALL, **{"reward.space": kind},
    )  # fmt: skip
    rows = metrics_of(run.directory)
    assert all(value is not None for row in rows for value in row.values())
    assert all(row["grad_norm/critic"] > 0 for row in rows)
    assert rows[-1]["loss/critic"] < rows[0]["loss/critic"]
    predicted = run.values("1 plus 2", "3").quantiles
    assert predicted.isfinite().all()
    if SPACES[kind].bounded:
        assert low - 1e-6 <= predicted.min() and predicted.max() <= high + 1e-6
