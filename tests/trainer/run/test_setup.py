"""What a run finds out before it starts."""

import math

import pytest
import torch

from dfpo.config import ConfigError, build_config
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy
from dfpo.run.setup import micro_tokens, range_of
from dfpo.run.train import train


@pytest.mark.parametrize(
    ("rewards", "low", "high"),
    [
        # Two values of equal count: the standard deviation is half their distance.
        ([1_000_000, 1_000_001], 999_999.5, 1_000_001.5),
        ([100.0, 100.01], 99.995, 100.015),
        ([-3.0, 5.0], -7.0, 9.0),
        ([7.0, 7.0], 6.0, 8.0),
        ([1e6, 1e6], 999_900.0, 1_000_100.0),
        ([0.0, 1e-6], -5e-7, 1.5e-6),
    ],
)
def test_the_range_keeps_its_spread_whatever_the_offset(rewards, low, high):
    found = range_of(torch.tensor(rewards, dtype=torch.float64))
    spread = high - low
    assert found == (pytest.approx(low, abs=0.01 * spread), pytest.approx(high, abs=0.01 * spread))


@pytest.mark.parametrize(
    "rewards", [[-1e30, 1e30], [1e-38, -1e-38], [1e30, 1e30], [1e10, 1e10 + 1]]
)
def test_what_no_critic_can_be_scaled_by_is_one_line(rewards):
    with pytest.raises(ConfigError, match="reward: the first ones lie around") as error:
        range_of(torch.tensor(rewards, dtype=torch.float64))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("algorithm", ["dfpo", "ppo", "dfpo-rank", "grpo"])
@pytest.mark.parametrize("values", [(1e6, 1e6 + 1), (-1e6, 1e6), (0.0, 1e-3), (5.0, 5.0)])
def test_rewards_of_any_scale_give_numbers(tmp_path, algorithm, values):
    from dfpo.run.given import Given
    from dfpo.run.records import read_metrics

    def reward(completions, **_):
        return [values[len(text) % 2] for text in completions]

    given = Given(rewards=(reward,))
    own = {} if algorithm == "grpo" else {"critic.warmup_steps": 1}
    settings = {
        "algorithm": algorithm, "steps": 2, "rollout.prompts": 2, "rollout.samples": 2,
        "eval.prompts": 0, "eval.examples": 0, "plots": False, "device": "cpu",
        "runs_dir": str(tmp_path),
    }  # fmt: skip
    run = train(build_config(settings | own | given.settings()), given=given)
    for row in read_metrics(run):
        missing = [name for name, value in row.items() if value is None or math.isnan(value)]
        assert not missing, missing


def test_how_many_tokens_at_once():
    policy, _ = load_policy(SHIPPED_POLICY)
    assert micro_tokens(build_config({}), policy) == 65536
    assert micro_tokens(build_config({"micro_tokens": 7}), policy) == 7
