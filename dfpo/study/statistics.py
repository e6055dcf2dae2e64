"""Statistics of a comparison: paired differences over few seeds, collapse, area under a curve.

A difference is arm minus baseline on one seed, where both met the same prompts, draws and noise.
The percentile bootstrap over n seeds covers less than it says when n is small, because it resamples
a spread that n values understate; Student's t does not, where differences are near normal. Both are
reported; docs/compare.md has their measured coverage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
RESAMPLES = 10_000
# Up to this many seeds every resample is visited: 6^6 = 46656.
EXACT = 6
UNKNOWN = (math.nan, math.nan)


class Difference(NamedTuple):
    """An arm against the baseline, over the seeds that both have."""

    seeds: int
    mean: float
    bootstrap: tuple[float, float]
    student: tuple[float, float]
    above: int  # seeds on which the arm was above the baseline


def paired_difference(
    arm: dict[int, float],  # seed -> value
    baseline: dict[int, float],
    level: float = LEVEL,
) -> Difference:
    """Paired difference of means with intervals. One value that is not finite makes it NaN
    without intervals: to leave that seed out would hide where an arm broke."""
    differences = [arm[seed] - baseline[seed] for seed in arm if seed in baseline]
    above = sum(x > 0 for x in differences)
    if not differences or not all(map(math.isfinite, differences)):
        return Difference(len(differences), math.nan, UNKNOWN, UNKNOWN, above)
    mean = float(np.mean(differences))

    return Difference(
        len(differences),
        mean,
        bootstrap_interval(differences, level),
        student_interval(differences, level),
        above,
    )


def bootstrap_interval(
    values: Sequence[float],  # [n]
    level: float = LEVEL,
) -> tuple[float, float]:
    """Percentile bootstrap of the mean: of the means of n values drawn with replacement the k-th
    smallest and the k-th largest, k = ceil((1 - level)/2 N) of N. All n^n draws for n <= 6, else
    10 000 from a fixed seed. NaN below two values.

    Source: Efron and Tibshirani 1993, chapter 13.
    """
    data = np.asarray(values, dtype=float)
    n = len(data)
    if n < 2:
        return UNKNOWN

    if n <= EXACT:
        draws = np.array(list(product(range(n), repeat=n)))
    else:
        draws = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))

    means = np.sort(data[draws].mean(1))
    k = math.ceil(round((1 - level) / 2 * len(means), 6))
    return float(means[k - 1]), float(means[-k])


def student_interval(
    values: Sequence[float],  # [n]
    level: float = LEVEL,
) -> tuple[float, float]:
    """mean -+ t_{n-1}((1 + level)/2) s / sqrt(n); NaN below two values."""
    n = len(values)
    if n < 2:
        return UNKNOWN
    half = student_quantile((1 + level) / 2, n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n)
    mean = float(np.mean(values))
    return mean - half, mean + half


def student_quantile(probability: float, freedom: int) -> float:
    """t with P(T <= t) = probability, T of Student's distribution with an integer number of degrees
    of freedom, probability in [0.5, 1)."""
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < probability else (low, middle)
    return high


def student_cdf(t: float, freedom: int) -> float:
    """P(T <= t) = (1 + A)/2 with the finite sums of Abramowitz and Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    if freedom % 2:
        term = total = cosine if freedom > 1 else 0.0
        for k in range(3, freedom - 1, 2):
            term *= cosine**2 * (k - 1) / k
            total += term
        area = 2 / math.pi * (angle + math.sin(angle) * total)
    else:
        term = total = 1.0
        for k in range(2, freedom - 1, 2):
            term *= cosine**2 * (k - 1) / k
            total += term
        area = math.sin(angle) * total

    return (1 + area) / 2


def wilson_interval(hits: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share of n runs; says something at 0 and n too (Wilson 1927)."""
    if not n:
        return UNKNOWN
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def collapsed(before: float, after: float, low: float = 0.0) -> bool:
    """Whether a run ended below half of where it started, both counted from the low end of the
    reward's range (0 for accuracy), or at nothing finite. One that started at nothing finite did
    not fall: nobody can score its benchmarks."""
    if not math.isfinite(before):
        return False
    return not math.isfinite(after) or after - low < (before - low) / 2


def area(values: Sequence[float | None]) -> float:
    """Area under a curve over steps, divided by their number; steps without a value are left out.
    NaN where there are none."""
    known = [x for x in values if x is not None]
    return float(np.mean(known)) if known else math.nan
