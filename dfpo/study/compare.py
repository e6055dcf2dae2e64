"""``dfpo compare``: a grid of runs, and what may be said of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfpo.study.grid import LOCAL, command_line, narrow, read_results, run
from dfpo.study.recipe import Settings, grid, load_recipe, parse_recipe
from dfpo.study.results import Result, mixed_versions
from dfpo.study.tables import headlines, write_tables
from dfpo.study.tuned import read_tuned

# Without a recipe: does the machinery work here, in ten minutes of two cores. Three seeds rank
# nothing.
QUICK: dict[str, Any] = {
    "output": "runs/quick",
    "baseline": "ppo",
    "seeds": 3,
    "arms": ["ppo", "dfpo"],
    "noises": ["none", "flip=0.3"],
    "base": {"steps": 45, "eval": {"prompts": 100}},
}


@dataclass(frozen=True)
class Compared:
    """Where a comparison was written, and what came of it."""

    output: Path
    baseline: str
    results: list[Result]


def compare(
    source: Path | Mapping[str, Any] | None,
    output: Path | None,
    seeds: int | None,
    jobs: int | None,
    flags: Settings,
    *,
    where: str = LOCAL,
    rows: Path | None = None,
) -> Compared:
    """Runs the cells that are not done yet and writes results, tables and plots. ``source`` is a
    recipe's file or the recipe itself; None is the quick one. ``where`` is "local" or a Ray
    cluster; ``rows`` has results of cells that are not trained again. Raises ConfigError before
    any work, RunError where cells failed, Stopped on Ctrl-C."""
    if isinstance(source, Path):
        recipe = load_recipe(source, flags)
        command = command_line("compare", source, output, seeds, flags, where=where, rows=rows)
    else:
        recipe = parse_recipe(source or QUICK, Path(), flags)
        command = "dfpo.compare(recipe)"
        if source is None:
            command = command_line("compare", None, output, seeds, flags, where=where, rows=rows)

    recipe = narrow(recipe, output, seeds)
    cells = grid(recipe, read_tuned(recipe))
    failed = run(recipe.output, cells, jobs, command, where, rows=rows)
    results = read_results(cells)

    if results:
        write_tables(recipe.output, results, recipe.baseline, command)
        # These bring matplotlib, which only drawing needs.
        from dfpo.study.page import write_comparison
        from dfpo.study.plots import plot_comparison

        plot_comparison(recipe.output, results, recipe.baseline)
        write_comparison(recipe.output, results, recipe.baseline, command)
        print(headlines(results, recipe.baseline))
        print(f"report.html, results.jsonl, table.md, table.tex and plots in {recipe.output}")
        if said := mixed_versions(results):
            print(f"dfpo compare: {said}", file=sys.stderr)

    if failed:
        raise failed
    return Compared(recipe.output, recipe.baseline, results)
