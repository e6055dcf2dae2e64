"""Noise: rates, reproducibility, and that it is a function of the sample alone."""

import pytest
import torch

from dfpo.noise import Noise, corrupt, parse_noise

COUNT = 20_000
IDS = torch.arange(COUNT)
REWARDS = (IDS % 2).float()


def apply(text, rewards=REWARDS, ids=IDS, seed=0, step=0, low=0.0, high=1.0):
    return corrupt(parse_noise(text), rewards, ids, seed=seed, step=step, low=low, high=high)


def test_parse():
    assert parse_noise("none") == Noise()
    assert parse_noise("flip=0.3") == Noise(0.3, 0.3, 0.0)
    assert parse_noise("fp=0.2, fn=0.1,outliers=0.05") == Noise(0.2, 0.1, 0.05)


@pytest.mark.parametrize(
    "text", ["", "flip", "flip=", "flip=x", "flip=-0.1", "flip=1.1", "flip=nan", "fp=.1,fp=.2",
             "flip=.1,fp=.1", "salt=.1"],
)  # fmt: skip
def test_parse_errors(text):
    with pytest.raises(ValueError):
        parse_noise(text)


def test_no_noise_changes_nothing():
    assert torch.equal(apply("none"), REWARDS)


# Five standard deviations of a binomial share of 10 000 draws at p = .3: 5 * sqrt(.21e-4) = .023.
@pytest.mark.parametrize(
    ("text", "wrong_positive", "wrong_negative"),
    [("flip=0.3", 0.3, 0.3), ("fp=0.3", 0.3, 0.0), ("fn=0.3", 0.0, 0.3), ("flip=1", 1.0, 1.0)],
)
def test_flip_rates(text, wrong_positive, wrong_negative):
    changed = apply(text) != REWARDS
    assert changed[REWARDS == 0].float().mean() == pytest.approx(wrong_positive, abs=0.023)
    assert changed[REWARDS == 1].float().mean() == pytest.approx(wrong_negative, abs=0.023)
    assert set(apply(text).tolist()) <= {0.0, 1.0}


def test_outliers():
    difference = apply("outliers=0.1") - REWARDS
    hit = difference != 0
    assert hit.float().mean() == pytest.approx(0.1, abs=0.011)
    assert sorted(set(difference[hit].round(decimals=4).tolist())) == [-10.0, 10.0]
    assert (difference[hit] > 0).float().mean() == pytest.approx(0.5, abs=0.06)


def test_flip_mirrors_other_ranges():
    rewards = torch.tensor([-1.0, 0.5, 3.0])
    assert apply("flip=1", rewards, IDS[:3], low=-1.0, high=3.0).tolist() == [3.0, 1.5, -1.0]


def test_same_draws_for_any_batch():
    whole = apply("flip=0.3,outliers=0.1")
    parts = [apply("flip=0.3,outliers=0.1", REWARDS[i::3], IDS[i::3]) for i in range(3)]
    for i, part in enumerate(parts):
        assert torch.equal(part, whole[i::3])
    assert not torch.equal(apply("flip=0.3", seed=1), apply("flip=0.3"))
    assert not torch.equal(apply("flip=0.3", step=1), apply("flip=0.3"))
