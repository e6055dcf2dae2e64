"""Results of finished cells: grouped by arm, and paired with the baseline seed by seed."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from dfpo.study.statistics import Difference, paired_difference

Result = dict[str, Any]
GROUPS = {"id": "ID AVG", "ood": "OOD AVG", "all": "ALL AVG"}


def mixed_versions(results: list[Result]) -> str:
    """One sentence where the code changed between cells, else nothing."""
    counts = Counter(r["version"] for r in results)
    if len(counts) < 2:
        return ""
    said = ", ".join(f"{count} of dfpo {version}" for version, count in sorted(counts.items()))
    return f"The {len(results)} runs are of more than one version of the code: {said}."


def groups(results: list[Result]) -> dict[tuple[str, str, str], list[Result]]:
    """(domain, noise, arm) -> its runs."""
    grouped: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        grouped.setdefault((result["domain"], result["noise"], result["arm"]), []).append(result)
    return dict(sorted(grouped.items(), key=lambda item: _place(results, item[0])))


def per_seed(runs: list[Result], group: str) -> dict[int, float]:
    """Final average of each seed, NaN where it is not finite; empty where there is no such
    benchmark."""
    values = {r["seed"]: r["after"][group] for r in runs if group in r["after"]}
    return {seed: math.nan if value is None else value for seed, value in values.items()}


def paired(
    results: list[Result], baseline: str
) -> list[tuple[tuple[str, str, str], str, Difference]]:
    """((domain, noise, arm), group, difference) for every arm that is not the baseline."""
    every = groups(results)
    pairs = []
    for key, runs in every.items():
        against = every.get((*key[:2], baseline), [])
        for group in GROUPS if key[2] != baseline else ():
            values = per_seed(runs, group)
            if values:
                pairs.append((key, group, paired_difference(values, per_seed(against, group))))

    return pairs


def _place(results: list[Result], key: tuple[str, str, str]) -> tuple[int, ...]:
    """The grid's order along every axis."""
    axes = [list(dict.fromkeys(r[axis] for r in results)) for axis in ("domain", "noise", "arm")]
    return tuple(axis.index(name) for axis, name in zip(axes, key, strict=True))
