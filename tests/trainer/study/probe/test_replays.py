"""What a critic knows: its scores against scipy and hand numbers, its probe against the policy."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from dfpo.config import ConfigError, build_config, stored_settings
from dfpo.config.noise import parse_noise
from dfpo.run import checkpoint
from dfpo.run.setup import set_up
from dfpo.study.probe.replays import plays_of, probe, replay

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def probed(run):
    setup = set_up(build_config(stored_settings("run", run)), run)
    checkpoint.restore(setup)
    return setup, probe(setup, replay(setup, 2, 8))


def test_a_probe_holds_every_state(probed):
    _, found = probed
    states = len(found.answer)
    assert found.quantiles.shape == (states, 4) and found.clean.shape == (states, 8)
    assert found.advantages.shape[1] == states
    lengths = np.bincount(found.answer)
    assert [len(words) for words in found.words] == lengths.tolist()
    assert found.domains == ("math", "math", "science", "science", "dialogue", "dialogue")
    ends = np.cumsum(lengths) - 1
    for answer, end in enumerate(ends):
        start = end - lengths[answer] + 1
        np.testing.assert_array_equal(found.after[start:end], found.clean[start + 1 : end + 1])
        assert (found.after[end] == found.rewards[answer]).all()
    assert set(np.unique(found.clean)) <= {0.0, 1.0}


def test_plays_from_the_last_state_end_as_the_answer(probed):
    """Nothing is left but the end token, which this policy never misses."""
    _, found = probed
    ends = np.cumsum(np.bincount(found.answer)) - 1
    np.testing.assert_array_equal(found.clean[ends].mean(1), found.rewards)


def test_noise_corrupts_the_plays_at_its_rate(probed):
    _, found = probed
    rate = (found.noisy != found.clean).mean()
    assert rate == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / found.clean.size) ** 0.5)


@pytest.mark.parametrize("noise", ["missing=1", pytest.param("vote=2", marks=pytest.mark.long)])
def test_the_answers_do_not_depend_on_the_noise(probed, noise):
    setup, found = probed
    noisy = dataclasses.replace(setup, noise=parse_noise(noise))
    other = probe(noisy, replay(noisy, 2, 8))
    assert other.words == found.words
    np.testing.assert_array_equal(other.clean, found.clean)
    if noise == "missing=1":
        assert np.isnan(other.noisy).all()


def test_answers_that_nothing_scores_are_named(probed):
    setup, _ = probed

    def unscored(*words, **options):
        scored = setup.reward(*words, **options)
        return scored.without(torch.ones(len(scored.values), dtype=torch.bool))

    with pytest.raises(ConfigError, match="reward: scores none of 6 answers"):
        replay(dataclasses.replace(setup, reward=unscored), 2, 8)


def test_the_same_probe_again_is_the_same(probed):
    setup, found = probed
    again = probe(setup, replay(setup, 2, 8))
    np.testing.assert_array_equal(found.clean, again.clean)
    np.testing.assert_array_equal(found.advantages, again.advantages)


def test_other_policies_and_noises_play_otherwise(probed):
    setup, _ = probed
    known = plays_of(setup)
    config = dataclasses.replace(setup.config, noise="none")
    assert plays_of(dataclasses.replace(setup, config=config)) != known
    policy = copy.deepcopy(setup.policy)
    assert plays_of(dataclasses.replace(setup, policy=policy)) == known
    next(policy.parameters()).data[0, 0] += 1
    assert plays_of(dataclasses.replace(setup, policy=policy)) != known


def test_torch_is_left_as_it_was(probed):
    assert torch.is_grad_enabled()
