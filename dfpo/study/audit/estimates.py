"""How wrong told rewards are, from what a critic expected of them: functions of arrays.

The critic is taught by the rewards that it judges, but not by those of these answers. Where errors
are independent of the answer, it learns what they leave of the truth. An error that follows from
the answer itself is what the critic learns, and no audit of this kind sees it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 500
LEVEL = 0.95
# Rates are counted among this share of answers on either side of which the critic is surest: of
# others it does not know whether it or the label is wrong.
SUREST = 1 / 2
FEWEST = 10  # such answers from which on a rate is given
# A critic that ranks told rewards hardly better than chance knows nothing of their errors.
CHANCE = 0.55
NORMAL_MAD = 1.4826
# No critic is surer of an answer than this.
SURE = 0.99

Interval = tuple[float, float, float]  # estimate, low, high; NaN where there is none
UNKNOWN = (np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class GroupReport:
    """One group's reward."""

    answers: int
    mean: float  # told
    skill: Interval  # chance that the critic expects more of an answer that is told to be better
    flips: Interval  # share of labels that are wrong; unknown where rewards are graded
    false_positives: Interval  # share of wrong answers told to be right
    false_negatives: Interval  # share of right answers told to be wrong
    spread: Interval  # deviation of told rewards around what was expected; unknown of two values

    @property
    def knows(self) -> bool:
        """Whether the critic knows enough for the other numbers to mean anything."""
        return bool(self.skill[1] > CHANCE)


def labels_of(told: np.ndarray) -> tuple[float, float] | None:  # [N]
    """The two values of rewards that are labels; None where there are more, or one."""
    values = np.unique(told)
    return (float(values[0]), float(values[1])) if len(values) == 2 else None


def group_report(told: np.ndarray, quantiles: np.ndarray, prompts: np.ndarray) -> GroupReport:
    """Of [N] told rewards and [N, Q] predictions. Intervals by a bootstrap over prompts."""
    expected, above, labels = quantiles.mean(1), better(told), labels_of(told)

    def interval(statistic: Callable[[np.ndarray], float]) -> Interval:
        return bootstrap(statistic, prompts)

    rates: dict[str, Interval] = dict.fromkeys(RATES, UNKNOWN)
    spread = UNKNOWN
    if labels is None:
        middle = np.median(quantiles, 1)
        spread = interval(lambda rows: robust_deviation(told[rows] - middle[rows]))
    else:
        right = told == labels[1]
        share = (expected - labels[0]) / (labels[1] - labels[0])
        rates = {
            name: interval(
                lambda rows, name=name: estimate_flip_rates(share[rows], right[rows])[name]
            )
            for name in RATES
        }

    return GroupReport(
        answers=len(told),
        mean=float(told.mean()),
        skill=interval(lambda rows: concordance(expected[rows], above[rows])),
        spread=spread,
        **rates,
    )


RATES = ("flips", "false_positives", "false_negatives")


def estimate_flip_rates(share: np.ndarray, right: np.ndarray) -> dict[str, float]:  # [N], [N] bool
    """Rates of wrong labels, by how often they disagree with a critic where it is surest.

    ``share`` is how often it expects the higher label. Answers of which it expects that less often
    than not are taken to be wrong, the others to be right; so each rate must be below a half.
    """
    wrong = share < 0.5
    positives = _rate(share, wrong, right)
    negatives = _rate(-share, ~wrong, ~right)
    part = wrong.mean()
    flips = np.nansum([part * positives, (1 - part) * negatives])
    missing = (np.isnan(positives) and part > 0.5) or (np.isnan(negatives) and part <= 0.5)
    return {
        "flips": np.nan if missing else float(flips),
        "false_positives": positives,
        "false_negatives": negatives,
    }


def _rate(share: np.ndarray, side: np.ndarray, disagrees: np.ndarray) -> float:
    """Among those of one side that come first."""
    rows = np.flatnonzero(side)
    surest = rows[np.argsort(share[rows], kind="stable")[: int(np.ceil(SUREST * len(rows)))]]
    return float(disagrees[surest].mean()) if len(surest) >= FEWEST else np.nan


def surprise(told: np.ndarray, quantiles: np.ndarray) -> np.ndarray:  # [N], [N, Q] -> [N]
    """How probable the critic finds a reward that is as far off: of two labels the told one's share
    of the expected mean, of graded rewards twice the smaller tail of the distribution."""
    labels = labels_of(told)
    if labels is not None:
        share = ((quantiles.mean(1) - labels[0]) / (labels[1] - labels[0])).clip(0, 1)
        return np.where(told == labels[1], share, 1 - share)
    count = quantiles.shape[1]
    below = (quantiles < told[:, None]).sum(1)
    at_most = (quantiles <= told[:, None]).sum(1)
    # A reward beyond all Q quantiles lies in a tail of less than 1 / (Q + 1).
    tails = np.minimum(at_most + 0.5, count - below + 0.5) / (count + 1)
    return np.minimum(1.0, 2 * tails)


def distance(told: np.ndarray, quantiles: np.ndarray) -> np.ndarray:  # [N], [N, Q] -> [N]
    """How far a reward is from the expected median, in expected quartile ranges: it orders what
    lies beyond all quantiles."""
    low, middle, high = np.quantile(quantiles, [0.25, 0.5, 0.75], axis=1)
    away = np.abs(told - middle)
    least = 1e-3 * (np.ptp(told) or 1.0)
    return away / np.maximum(high - low, least)


def wrong_label(
    told: np.ndarray, quantiles: np.ndarray, report: GroupReport
) -> np.ndarray:  # [N], [N, Q] -> [N]
    """P(label wrong | answer, label) by Bayes' rule, of what the critic expects and the estimated
    rates; NaN for graded rewards and where rates are unknown."""
    labels = labels_of(told)
    positives, negatives = report.false_positives[0], report.false_negatives[0]
    if labels is None or not positives + negatives < 1:
        return np.full(len(told), np.nan)

    expected = (quantiles.mean(1) - labels[0]) / (labels[1] - labels[0])
    right = ((expected - positives) / (1 - positives - negatives)).clip(1 - SURE, SURE)
    told_right = told == labels[1]
    wrong = np.where(told_right, (1 - right) * positives, right * negatives)
    correct = np.where(told_right, right * (1 - negatives), (1 - right) * (1 - positives))
    return wrong / (wrong + correct)


def concordance(score: np.ndarray, above: np.ndarray) -> float:  # [N], [N] bool
    """P(score is higher | one is above and the other is not), equal scores half: the area under the
    ROC curve. NaN where all are above, or none."""
    if above.all() or not above.any():
        return np.nan
    others = np.sort(score[~above])
    below = np.searchsorted(others, score[above])
    at_most = np.searchsorted(others, score[above], side="right")
    return float((below + at_most).mean() / (2 * len(others)))


def better(told: np.ndarray) -> np.ndarray:  # [N] -> [N] bool
    """The higher of two labels; of graded rewards those above the middle one."""
    middle = np.median(told)
    return told > middle if (told > middle).any() else told >= middle


def robust_deviation(residual: np.ndarray) -> float:  # [N]
    """Of a normal distribution with this median absolute deviation."""
    return float(NORMAL_MAD * np.median(np.abs(residual - np.median(residual))))


def bootstrap(statistic: Callable[[np.ndarray], float], clusters: np.ndarray) -> Interval:
    """A statistic of rows with its percentile interval over resampled clusters [N]."""
    order = np.argsort(clusters, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1)
    rng = np.random.default_rng(0)

    def resample() -> np.ndarray:
        chosen = rng.integers(len(members), size=len(members))
        return np.concatenate([members[i] for i in chosen])

    drawn = [statistic(resample()) for _ in range(RESAMPLES)]
    values = np.array(drawn)[np.isfinite(drawn)]
    whole = statistic(np.arange(len(clusters)))
    if not np.isfinite(whole) or len(values) < RESAMPLES / 2:
        return whole, np.nan, np.nan
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(whole), float(low), float(high)
