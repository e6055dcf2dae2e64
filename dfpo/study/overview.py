"""One setting under every noise: what an arm reaches over all noises of a domain, and the worst.

Only seeds count that every arm has finished under every noise, so that all are judged on the same
runs. After Agarwal et al. 2021, arXiv 2108.13264: interquartile means and performance profiles
beside means, intervals everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dfpo.study.results import Result
from dfpo.study.statistics import LEVEL, Difference, paired_difference

GROUP = "all"


@dataclass(frozen=True)
class Overview:
    """An arm over the noises of a domain: final averages over all benchmarks."""

    domain: str
    arm: str
    scores: np.ndarray  # [seeds, noises]
    worst: tuple[float, str]  # its lowest mean over seeds, and the noise
    behind: tuple[float, str]  # how far it is at most below the best arm of a noise, and the noise
    collapsed: int  # of its runs
    difference: Difference | None  # to the baseline, in means over noises; None of the baseline

    @property
    def means(self) -> np.ndarray:  # [seeds], over noises
        return self.scores.mean(1)


def overviews(results: list[Result], baseline: str) -> list[Overview]:
    """Every arm of every domain that has several noises and a seed that is complete; intervals of
    differences are Bonferroni's, 95 % for all arms of a domain together."""
    made = []
    for domain in dict.fromkeys(r["domain"] for r in results):
        own = [r for r in results if r["domain"] == domain and GROUP in r["after"]]
        noises, arms = (list(dict.fromkeys(r[axis] for r in own)) for axis in ("noise", "arm"))
        runs = {(r["seed"], r["noise"], r["arm"]): r for r in own}
        seeds = [
            seed
            for seed in dict.fromkeys(r["seed"] for r in own)
            if all((seed, noise, arm) in runs for noise in noises for arm in arms)
        ]
        if len(noises) < 2 or not seeds:
            continue

        scores = {
            arm: np.array([[_score(runs[s, n, arm]) for n in noises] for s in seeds])
            for arm in arms
        }
        best = np.max([table.mean(0) for table in scores.values()], axis=0)
        for arm, table in scores.items():
            level, below = table.mean(0), best - table.mean(0)
            lowest, furthest = int(level.argmin()), int(below.argmax())
            fallen = sum(runs[s, n, arm]["collapsed"] for s in seeds for n in noises)
            gap = None
            if baseline in scores and arm != baseline:
                ours, theirs = (
                    dict(zip(seeds, scores[name].mean(1).tolist(), strict=True))
                    for name in (arm, baseline)
                )
                gap = paired_difference(ours, theirs, corrected(len(arms) - 1))
            made.append(Overview(
                domain, arm, table,
                worst=(float(level[lowest]), noises[lowest]),
                behind=(float(below[furthest]), noises[furthest]),
                collapsed=fallen, difference=gap,
            ))  # fmt: skip

    return made


def corrected(comparisons: int) -> float:
    """The level of each of several intervals that together hold with ``LEVEL`` (Bonferroni)."""
    return 1 - (1 - LEVEL) / max(1, comparisons)


def interquartile_mean(values: np.ndarray) -> float:
    """The mean of the middle half: a quarter of the values, rounded down, is left out on either
    side."""
    ordered = np.sort(values, axis=None)
    out = len(ordered) // 4
    return float(ordered[out : len(ordered) - out].mean())


def profile(scores: np.ndarray, levels: np.ndarray) -> np.ndarray:  # [levels]
    """The share of runs that end above each level."""
    return (scores.reshape(-1, 1) > levels).mean(0)


def _score(run: Result) -> float:
    value = run["after"][GROUP]
    return math.nan if value is None else value
