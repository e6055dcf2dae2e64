"""Comparisons and critics' scores as one HTML page: curves, intervals, tables."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from dfpo.run.report.page import NAME, assemble, read_asset, write_page
from dfpo.study.plots import all_curves
from dfpo.study.results import GROUPS, Result, groups, paired, per_seed
from dfpo.study.tables import MISSING, Markup, tables

SCRIPTS = ("uPlot.iife.min.js", "elements.js")
FOR_CURVES = 3_000_000  # letters of all learning curves
# Of a cell of a page, which marks what is bold and escapes all by itself.
PLAIN = Markup(" ± ", "-", MISSING, lambda s: f"**{s}**", lambda s: s)
FOREST = (
    "Points above {baseline}, seed by seed: mean, the bootstrap's 95 % interval (thick), Student's "
    "(thin, and in brackets), and the seeds."
)


def write_comparison(output: Path, results: list[Result], baseline: str, command: str) -> None:
    """report.html of a comparison's results."""
    curves = all_curves(output, results)
    arms = list(dict.fromkeys(r["arm"] for r in results))
    data = {
        "about": f"{command}; {len(results)} runs.",
        "arms": arms,
        "curves": curve_data(curves),
        "forest": {
            "panels": list(GROUPS.values()),
            "shared": True,
            "decimals": 1,
            "text": FOREST.format(baseline=baseline),
            "rows": forest_rows(results, baseline),
        },
        "tables": [
            {"title": t.title, "text": t.text, "head": t.headers, "rows": t.rows}
            for t in tables(results, baseline, PLAIN)
        ],
    }
    write_page(output / NAME, render_study(f"DFPO: {output.name}", data))


def render_study(title: str, data: dict[str, Any]) -> str:
    """The page of a comparison, or of critics' scores."""
    scripts = [read_asset("dfpo.run.report", name) for name in SCRIPTS]
    scripts.append(read_asset("dfpo.study", "study.js"))
    return assemble(read_asset("dfpo.study", "study.html"), scripts, title, data)


def curve_data(curves: dict[tuple[str, str, str], np.ndarray]) -> list[dict[str, Any]]:
    """Of each domain and noise the arms' mean, lowest and highest seed at each step; of evenly
    spaced steps where there is no room for all."""
    longest = max((seeds.shape[1] for seeds in curves.values()), default=0)
    each = max(1, math.ceil(longest * len(curves) * 24 / FOR_CURVES))
    panels: dict[tuple[str, str], dict[str, Any]] = {}

    for (domain, noise, arm), seeds in curves.items():
        panel = panels.setdefault(
            (domain, noise),
            {"domain": domain, "noise": noise, "x": list(range(0, longest, each)), "arms": {}},
        )
        seen = np.full((len(seeds), longest), np.nan)
        seen[:, : seeds.shape[1]] = seeds
        kept = seen[:, ::each]
        panel["arms"][arm] = {
            name: [_number(reduce(column)) for column in kept.T]
            for name, reduce in (("mean", _mean), ("low", np.min), ("high", np.max))
        }

    return list(panels.values())


def _mean(values: np.ndarray) -> float:
    # A seed without a value leaves no mean, as in the plots.
    return float(values.mean())


def _number(value: float, digits: int = 4) -> float | None:
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def forest_rows(results: list[Result], baseline: str) -> list[dict[str, Any]]:
    """A row for each difference to the baseline, in points of 100."""
    grouped = groups(results)
    rows = []
    for (domain, noise, arm), group, gap in paired(results, baseline):
        ours = per_seed(grouped[(domain, noise, arm)], group)
        base = per_seed(grouped.get((domain, noise, baseline), []), group)
        seeds = [100 * (value - base[seed]) for seed, value in ours.items() if seed in base]
        rows.append({
            "domain": domain, "noise": noise, "arm": arm, "panel": GROUPS[group],
            "mean": _number(100 * gap.mean),
            "thin": [_number(100 * bound) for bound in gap.student],
            "thick": [_number(100 * bound) for bound in gap.bootstrap],
            "seeds": [_number(value) for value in seeds],
        })  # fmt: skip
    return rows
