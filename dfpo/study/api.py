"""Comparisons in Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfpo.config.build import flatten
from dfpo.study.compare import compare as run_comparison
from dfpo.study.results import Result, paired

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def compare(
    recipe: str | Path | Mapping[str, Any],
    *,
    output: str | Path | None = None,
    seeds: int | None = None,
    jobs: int | None = None,
    **settings: Any,
) -> Comparison:
    """Trains a grid of arms, noises, domains and seeds; goes on where it stopped before.

    Args:
        recipe: a YAML file (docs/compare.md), or the same as a mapping.
        output: where to write; default the recipe's.
        seeds: the first so many of the recipe's seeds alone.
        jobs: cells at a time; default one a core.
        settings: settings of every cell that reads them, as in ``train``.

    Raises:
        ConfigError: what is wrong with the recipe, in one line, before any work.
        RunError: which cells failed; the others are done and written.
    """
    source = recipe if isinstance(recipe, Mapping) else Path(recipe)
    folder = None if output is None else Path(output)
    done = run_comparison(source, folder, seeds, jobs, dict(flatten(settings)))
    return Comparison(done.output, done.baseline, done.results)


@dataclass(frozen=True)
class Comparison:
    """A finished grid."""

    output: Path  # results.jsonl, table.md, table.tex, plots/, cells/
    baseline: str
    results: list[Result]  # one mapping a cell

    @property
    def table(self) -> str:
        """Levels, paired differences and budgets, in Markdown."""
        return (self.output / "table.md").read_text(encoding="utf-8")

    @property
    def differences(self) -> list[dict[str, Any]]:
        """Each arm less the baseline, seed by seed: mean, Student's and bootstrap interval."""
        return [
            {
                "domain": domain, "noise": noise, "arm": arm, "over": group, "mean": gap.mean,
                "student": gap.student, "bootstrap": gap.bootstrap, "seeds": gap.seeds,
            }
            for (domain, noise, arm), group, gap in paired(self.results, self.baseline)
        ]  # fmt: skip

    def plot(self) -> Figure:
        """Final averages of every arm."""
        from dfpo.run.plots import styled
        from dfpo.study.plots import plot_levels

        with styled():
            return plot_levels(self.results)

    def __repr__(self) -> str:
        arms = ", ".join(dict.fromkeys(result["arm"] for result in self.results))
        return f"Comparison {self.output}: {len(self.results)} runs of {arms}"
