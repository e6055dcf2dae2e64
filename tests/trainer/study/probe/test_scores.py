"""A critic's scores against scipy and numbers worked out by hand."""

import json

import numpy as np
import pytest
import scipy.stats

from dfpo.study.probe.replays import Probe
from dfpo.study.probe.scores import critic_scores, crps, cvar, wasserstein

RNG = np.random.default_rng(0)


def test_wasserstein_is_scipys():
    first, second = RNG.normal(size=(5, 7)), RNG.integers(0, 2, (5, 64)).astype(float)
    expected = [scipy.stats.wasserstein_distance(a, b) for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(wasserstein(first, second), expected, atol=1e-12)


def test_crps_is_the_integral_it_stands_for():
    """CRPS(F, y) = int (F(x) - 1{x >= y})^2 dx, on a fine grid."""
    predicted, observed = RNG.normal(size=(3, 6)), RNG.normal(size=(3, 4))
    grid = np.linspace(-6, 6, 200_001)
    step = grid[1] - grid[0]
    for p, o, found in zip(predicted, observed, crps(predicted, observed), strict=True):
        distribution = np.searchsorted(np.sort(p), grid, side="right") / len(p)
        expected = np.mean([((distribution - (grid >= y)) ** 2).sum() * step for y in o])
        assert found == pytest.approx(expected, abs=1e-3)


def test_cvar_by_hand():
    values = np.array([[4.0, 1.0, 3.0, 2.0]])
    assert cvar(values, 0.25) == pytest.approx(1.0)
    assert cvar(values, 0.5) == pytest.approx(1.5)
    assert cvar(values, 0.375) == pytest.approx((1 + 2 * 0.5) / 1.5)  # the edge counts in part


def known_probe(quantiles, advantages, flip=False):
    """Two answers of three tokens. The first is right whatever follows; the second's first token
    is a coin, and what follows it is wrong."""
    true = np.array([1, 1, 1, 0.5, 0, 0])
    # Right and wrong plays take turns, so that both halves are alike.
    clean = np.stack([np.arange(64) % 2 < 2 * p for p in true]).astype(float)
    after = np.stack([np.arange(64) % 2 < 2 * p for p in (1, 1, 1, 0, 0, 0)]).astype(float)
    return Probe(
        np.asarray(quantiles, float), clean, 1 - clean if flip else clean, after,
        np.asarray(advantages, float), np.array([0, 0, 0, 1, 1, 1]), ("math", "math"),
        (("a",) * 3, ("b",) * 3), np.array([1.0, 0.0]),
    )  # fmt: skip


def test_a_perfect_critic_by_hand():
    distribution = [[1, 1], [1, 1], [1, 1], [0, 1], [0, 0], [0, 0]]
    found = {
        key: value[0]
        for key, value in critic_scores(
            known_probe(distribution, [[0, 0, 0, -0.5, 0, 0]]), 1.0
        ).items()
    }
    assert found["explained_variance"] == pytest.approx(1)
    for key in ("bias", "noisy_bias", "w1", "w1_floor", "cvar_error", "cvar_floor"):
        assert found[key] == pytest.approx(0, abs=1e-12)
    # CRPS 0 but at the coin: E|X-Y| 1/2 - E|X-X'|/2 1/4 = 1/4; of one for all with 3.5 of 6 ones
    # (37 of its 64 quantiles, p = .578125): p (1 - p) for a sure 1 is (1-p)^2, for a sure 0 p^2.
    p = 37 / 64
    pooled = (3 * (1 - p) ** 2 + 2 * p**2 + (0.5 - p * (1 - p))) / 6
    assert found["crps_skill"] == pytest.approx(1 - (0.25 / 6) / pooled, rel=1e-2)
    # The one token that decides has all the advantage, of the true sign.
    assert found["sign_agreement"] == found["sign_ceiling"] == found["decided"] == 1
    assert found["turn_share"] == 1
    assert found["turn_chance"] == pytest.approx(1 / 6)


def test_a_wrong_critic_by_hand():
    middle = [[0.5]] * 6
    probed = known_probe(middle, [[0.1, 0.1, 0.1, 0.1, 0.1, 0.1], [0, 0, 0, -0.1, 0, 0]], flip=True)
    found = {key: value[0] for key, value in critic_scores(probed, 1.0).items()}
    assert found["explained_variance"] == pytest.approx(0)
    assert found["bias"] == pytest.approx(0.5 - 3.5 / 6)
    assert found["noisy_bias"] == pytest.approx(0.5 - 2.5 / 6)
    assert found["w1"] == pytest.approx(0.5)
    assert found["cvar_error"] == pytest.approx(0.5)  # a point in the middle of tails at 0 and 1
    assert found["sign_agreement"] == pytest.approx(0.5)  # wrong in one of two draws of the noise
    # Mean sizes .05 each but .1 on the deciding token.
    assert found["turn_share"] == pytest.approx(0.1 / 0.35)


def many_states(quantiles, clean, after, advantages):
    """20 answers of equally many states each."""
    answer = np.repeat(np.arange(20), len(clean) // 20)
    words = (("a",) * (len(clean) // 20),) * 20
    return Probe(
        quantiles, clean, clean, after, advantages, answer, ("math",) * 20, words, np.zeros(20)
    )


def test_true_advantages_score_the_ceiling_though_few_tokens_turn():
    """One token in 40 falls from 1/2 to 0. Decided by all plays at two errors, 5 % false alarms
    would outnumber them and true advantages agree on little more than half."""
    rng = np.random.default_rng(1)
    turns = np.arange(4000) % 40 == 0
    clean = (rng.random((4000, 64)) < 0.5).astype(float)
    after = (rng.random((4000, 64)) < np.where(turns, 0, 0.5)[:, None]).astype(float)
    true = np.where(turns, -0.5, 0.0)[None]
    found = critic_scores(many_states(np.full((4000, 1), 0.5), clean, after, true), 1.0)
    assert found["sign_agreement"][0] > 0.9
    # Chance tokens, some ten of 110, agree by 1/2 with a spread of sqrt(10)/2: 1.6 / 110 = .014
    assert found["sign_agreement"][0] == pytest.approx(found["sign_ceiling"][0], abs=0.045)
    assert 100 <= found["decided"][0] <= 125


def test_a_perfect_distribution_scores_the_floor_of_cvar():
    clean = np.random.default_rng(2).normal(size=(2000, 64))
    distribution = np.tile(scipy.stats.norm.ppf((np.arange(200) + 0.5) / 200), (2000, 1))
    found = critic_scores(many_states(distribution, clean, clean, np.zeros((1, 2000))), 1.0)
    assert found["cvar_error"][0] == pytest.approx(found["cvar_floor"][0], rel=0.1)
    assert found["cvar_floor"][0] > 0.1


def test_what_nothing_decides_is_left_out_of_json():
    """No advantage at all has no share on any token; JSON has no NaN."""
    found = critic_scores(known_probe([[0.5]] * 6, np.zeros((1, 6))), 1.0)
    assert found["turn_share"] == (None, None, None)
    assert "NaN" not in json.dumps(found)
