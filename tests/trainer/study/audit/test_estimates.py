"""What is estimated of rewards, on labels whose errors are known, and by hand."""

import numpy as np
import pytest
from scipy import stats

from dfpo.study.audit.estimates import (
    better,
    bootstrap,
    concordance,
    distance,
    estimate_flip_rates,
    group_report,
    labels_of,
    robust_deviation,
    surprise,
    wrong_label,
)

COUNT = 1200
PROMPTS = np.arange(COUNT) // 4


def area(wrong, score):
    """The area under the ROC curve, as Mann and Whitney's statistic."""
    pairs = wrong.sum() * (~wrong).sum()
    return stats.mannwhitneyu(score[wrong], score[~wrong]).statistic / pairs


def labelled(fp, fn, doubt=0.05, seed=0, low=0.0, high=1.0):
    """Labels with errors, and what a critic expects that knows the rates and, but for some
    ``doubt``, the truth."""
    rng = np.random.default_rng(seed)
    right = rng.random(COUNT) < 0.4
    told = np.where(rng.random(COUNT) < np.where(right, fn, fp), ~right, right)
    belief = np.clip(np.where(right, 1 - doubt, doubt) + 0.05 * rng.standard_normal(COUNT), 0, 1)
    share = fp + belief * (1 - fp - fn)
    expected = np.repeat(share[:, None], 4, 1) + np.array([-0.1, -0.05, 0.05, 0.1])
    return right, low + (high - low) * told, low + (high - low) * expected


@pytest.mark.parametrize("fp, fn", [(0.2, 0.2), (0.3, 0.1), (0.0, 0.0), (0.02, 0.35)])
@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-3.0, 5.0)])
def test_rates_of_flips_are_found(fp, fn, low, high):
    right, told, quantiles = labelled(fp, fn, low=low, high=high)
    report = group_report(told, quantiles, PROMPTS)
    assert report.knows and labels_of(told) == (low, high) and np.isnan(report.spread[0])
    # At least 240 answers each: three standard errors are .09 at most.
    assert report.false_positives[0] == pytest.approx(fp, abs=0.09)
    assert report.false_negatives[0] == pytest.approx(fn, abs=0.09)
    assert report.flips[0] == pytest.approx(0.6 * fp + 0.4 * fn, abs=0.07)
    for estimate, interval_low, interval_high in (report.flips, report.skill):
        assert interval_low <= estimate <= interval_high


def test_a_critic_that_knows_nothing_says_so():
    _, told, _ = labelled(0.2, 0.2)
    guessed = np.random.default_rng(1).normal(0.5, 0.1, (COUNT, 4))
    assert not group_report(told, guessed, PROMPTS).knows


def test_too_few_answers_of_a_side_give_no_rate():
    share = np.r_[np.full(5, 0.1), np.full(300, 0.9)]
    right = share > 0.5
    found = estimate_flip_rates(share, right)
    assert np.isnan(found["false_positives"]) and found["false_negatives"] == 0
    assert found["flips"] == 0  # what is known of nearly all


def test_the_rate_is_counted_where_the_critic_is_surest():
    """By hand: of 40 on each side the 20 surest; the others, all told against it, do not count."""
    share = np.r_[np.linspace(0, 0.2, 20), np.full(20, 0.4), np.full(20, 0.6), np.full(20, 0.9)]
    right = np.r_[[True] * 5, [False] * 15, [True] * 20, [False] * 20, [False] * 2, [True] * 18]
    found = estimate_flip_rates(share, right)
    assert (found["false_positives"], found["false_negatives"]) == (0.25, 0.1)
    assert found["flips"] == pytest.approx(0.5 * 0.25 + 0.5 * 0.1)


def test_wrong_labels_by_bayes_rule():
    # Told right, 3/4 expected, rates .1 and .2: right with chance (.75 - .1) / .7; wrong
    # (1 - right) .1 against right .8.
    _, told, quantiles = labelled(0.1, 0.2)
    report = group_report(told, quantiles, PROMPTS)
    fp, fn = report.false_positives[0], report.false_negatives[0]
    told, quantiles = np.array([1.0, 0.0]), np.full((2, 3), 0.75)
    right = (0.75 - fp) / (1 - fp - fn)
    expected = [
        (1 - right) * fp / ((1 - right) * fp + right * (1 - fn)),
        right * fn / (right * fn + (1 - right) * (1 - fp)),
    ]
    assert wrong_label(told, quantiles, report).tolist() == pytest.approx(expected)


def test_wrong_labels_are_calibrated_and_found():
    right, told, quantiles = labelled(0.2, 0.2)
    wrong = right != (told == 1)
    found = wrong_label(told, quantiles, group_report(told, quantiles, PROMPTS))
    assert area(wrong, found) > 0.97
    assert found.mean() == pytest.approx(wrong.mean(), abs=0.05)


def test_surprise_by_hand():
    # Two labels: what the expected mean leaves to the told one.
    quantiles = np.array([[0.2, 0.4], [0.2, 0.4]])
    assert surprise(np.array([1.0, 0.0]), quantiles).tolist() == pytest.approx([0.3, 0.7])
    # Graded, four quantiles 1 to 4: below all, between the middle ones, at the second, above all.
    quantiles = np.tile(np.arange(1.0, 5), (4, 1))
    expected = [2 * 0.5 / 5, 1.0, 1.0, 2 * 0.5 / 5]
    assert surprise(np.array([-9.0, 2.5, 2.0, 99.0]), quantiles).tolist() == pytest.approx(expected)
    assert distance(np.array([2.5, 4.0]), quantiles[:2]).tolist() == pytest.approx([0, 1.0])


def test_the_spread_of_graded_rewards():
    rng = np.random.default_rng(0)
    value = rng.normal(0, 2, COUNT)
    told = value + 0.5 * rng.standard_normal(COUNT)
    told[:60] += 100  # outliers, which it is robust to
    report = group_report(told, value[:, None] + np.linspace(-1, 1, 9), PROMPTS)
    # Three standard errors of the scaled median absolute deviation, 1.17 .5 / sqrt(1200) each.
    assert report.spread[0] == pytest.approx(0.5, abs=0.08) and np.isnan(report.flips[0])
    assert report.knows
    assert robust_deviation(rng.standard_normal(40_000)) == pytest.approx(1, abs=0.03)


def test_concordance_is_the_area_under_the_curve():
    rng = np.random.default_rng(0)
    score, truth = rng.integers(5, size=200).astype(float), rng.random(200) < 0.4
    assert concordance(score, truth) == pytest.approx(area(truth, score))
    assert np.isnan(concordance(score, truth | True)) and np.isnan(
        concordance(score, truth & False)
    )
    assert better(np.array([1.0, 2, 3])).tolist() == [False, False, True]
    assert better(np.array([0.0, 1, 1])).tolist() == [False, True, True]


def test_intervals_resample_prompts():
    """Four equal answers to a prompt say as much as one: scipy's interval of the prompts."""
    values = np.random.default_rng(3).standard_normal(150)
    repeated, prompts = np.repeat(values, 4), np.repeat(np.arange(150), 4)
    _, low, high = bootstrap(lambda rows: repeated[rows].mean(), prompts)
    expected = stats.bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=0.03)
