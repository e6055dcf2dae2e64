"""Intervals of a comparison against scipy and hand numbers."""

import math

import numpy as np
import pytest
import scipy.stats

from dfpo.study.statistics import (
    area,
    bootstrap_interval,
    collapsed,
    paired_difference,
    student_cdf,
    student_interval,
    student_quantile,
    wilson_interval,
)

FIVE = [0.031, -0.012, 0.044, 0.007, 0.020]
TWELVE = [0.3, -0.1, 0.2, 0.25, 0.4, -0.3, 0.1, 0.05, 0.6, 0.15, 0.0, 0.33]


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 9, 30, 31])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.995])
def test_students_distribution_is_scipys(freedom, probability):
    expected = scipy.stats.t.ppf(probability, freedom)
    assert student_quantile(probability, freedom) == pytest.approx(expected, rel=1e-9)
    assert student_cdf(expected, freedom) == pytest.approx(probability, rel=1e-12)


@pytest.mark.parametrize("values", [[0.1, 0.4], FIVE, TWELVE])
def test_student_interval_is_scipys(values):
    expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert student_interval(values) == pytest.approx(tuple(expected), rel=1e-9)


@pytest.mark.parametrize("values", [FIVE, TWELVE])
def test_bootstrap_is_scipys(values):
    """Both resample at random, or all of it where few seeds allow: the ends agree within a few
    hundredths of the interval's width."""
    found = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    width = found.high - found.low
    assert bootstrap_interval(values) == pytest.approx(tuple(found), abs=0.03 * width)


def test_bootstrap_of_two_values_by_hand():
    """Of the four resamples of {0, 1} the means are 0, 1/2, 1/2, 1. One in four is a tail of .25,
    the ends alone; a tail of .3 needs a second, the middle."""
    assert bootstrap_interval([0.0, 1.0], level=0.5) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5)


def test_bootstrap_of_three_values_by_hand():
    """The least of the 27 resamples is one with mass 1/27 > .025, so it is the end."""
    assert bootstrap_interval([0.1, 0.2, 0.6]) == pytest.approx((0.1, 0.6))


def test_bootstrap_is_the_same_each_time():
    assert bootstrap_interval(TWELVE) == bootstrap_interval(TWELVE)


def test_student_covers_what_it_says_with_five_seeds_and_the_bootstrap_does_not():
    """400 sets of 5 normal differences around 0: a 95 % interval misses it in 20, and the standard
    error of that count is 4.4. docs/compare.md says what the bootstrap does."""
    draws = np.random.default_rng(0).standard_normal((400, 5))
    hits = [
        sum(low <= 0 <= high for low, high in map(interval, draws))
        for interval in (student_interval, bootstrap_interval)
    ]
    assert 362 <= hits[0] <= 398
    assert hits[1] < 355


def test_pairs_are_by_seed():
    """Differences .1 and .3 on seeds 1 and 2; seed 3 has no partner."""
    found = paired_difference({2: 0.8, 1: 0.5, 3: 0.9}, {1: 0.4, 2: 0.5})
    assert (found.seeds, found.above) == (2, 2)
    assert found.mean == pytest.approx(0.2)
    # s = .1 sqrt 2, so s / sqrt 2 = .1; t_1(.975) = 12.706.
    assert found.student == pytest.approx((0.2 - 1.2706, 0.2 + 1.2706), abs=1e-4)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_seed_that_is_not_finite_is_not_left_out(broken):
    """Without seed 3 the arm would win by .1 twice."""
    arm, baseline = {1: 0.5, 2: 0.6, 3: broken}, {1: 0.4, 2: 0.5, 3: 0.5}
    for found in (paired_difference(arm, baseline), paired_difference(baseline, arm)):
        assert found.seeds == 3
        assert np.isnan([found.mean, *found.student, *found.bootstrap]).all()


@pytest.mark.parametrize("values", [[], [0.3]])
def test_fewer_than_two_seeds_have_no_interval(values):
    for low, high in (bootstrap_interval(values), student_interval(values)):
        assert math.isnan(low) and math.isnan(high)
    assert math.isnan(wilson_interval(0, 0)[0])


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (2, 5), (5, 5), (1, 40)])
def test_wilson_is_scipys(hits, n):
    expected = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson_interval(hits, n) == pytest.approx(tuple(expected), abs=1e-6)


def test_collapse_is_below_half_of_the_start():
    assert collapsed(0.5, 0.2499) and not collapsed(0.5, 0.25)
    assert collapsed(0.5, math.nan) and collapsed(0.5, math.inf)
    assert not collapsed(math.nan, math.nan) and not collapsed(math.nan, 0.3), (
        "nothing to fall from"
    )
    # A reward in [-1, 1] that starts at 0 is 1 above its low end, so half is -0.5.
    assert collapsed(0.0, -0.51, low=-1.0) and not collapsed(0.0, -0.49, low=-1.0)


def test_area_leaves_missing_steps_out():
    assert area([0.0, None, 0.5, 1.0]) == 0.5
    assert math.isnan(area([None]))
