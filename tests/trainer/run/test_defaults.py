"""Settings that follow from the first rewards."""

import pytest
import torch

from dfpo.config import ConfigError
from dfpo.run.defaults import range_of


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
