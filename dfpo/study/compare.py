"""``dfpo compare``: a grid of runs, and what may be said of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from dfpo.study.grid import collect, command_line, narrow, run
from dfpo.study.recipe import Settings, grid, load_recipe, parse_recipe
from dfpo.study.results import mixed_versions
from dfpo.study.tables import write_tables
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


def compare(
    path: Path | None, output: Path | None, seeds: int | None, jobs: int | None, flags: Settings
) -> None:
    """Runs the cells that are not done yet and writes results, tables and plots. Raises
    ConfigError before any work, RunError where cells failed, Stopped on Ctrl-C."""
    recipe = load_recipe(path, flags) if path else parse_recipe(QUICK, Path(), flags)
    recipe = narrow(recipe, output, seeds)
    cells = grid(recipe, read_tuned(recipe))
    command = command_line("compare", path, output, seeds, flags)
    failed = run(recipe.output, cells, jobs, command)
    results = collect(cells)
    if results:
        write_tables(recipe.output, results, recipe.baseline, command)
        from dfpo.study.plots import plot_comparison  # matplotlib, which only drawing needs

        plot_comparison(recipe.output, results, recipe.baseline)
        print((recipe.output / "table.md").read_text())
        print(f"results.jsonl, table.md, table.tex and plots in {recipe.output}")
        if said := mixed_versions(results):
            print(f"dfpo compare: {said}", file=sys.stderr)
    if failed:
        raise failed
