"""Comparisons and audits in Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfpo.config import ConfigError
from dfpo.config.build import flatten
from dfpo.run.api import Rewards, Run
from dfpo.run.given import Given, read_rewards
from dfpo.study.audit.command import Audit
from dfpo.study.audit.command import audit as audit_run
from dfpo.study.compare import compare as run_comparison
from dfpo.study.grid import LOCAL
from dfpo.study.results import Result, paired

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def compare(
    recipe: str | Path | Mapping[str, Any],
    *,
    output: str | Path | None = None,
    seeds: int | None = None,
    jobs: int | None = None,
    on: str = LOCAL,
    rows: str | Path | None = None,
    **settings: Any,
) -> Comparison:
    """Trains a grid of arms, noises, domains and seeds; goes on where it stopped before.

    Args:
        recipe: a YAML file (docs/compare.md), or the same as a mapping.
        output: where to write; default the recipe's.
        seeds: the first so many of the recipe's seeds alone.
        jobs: cells at a time; default one a core.
        on: "local"; "ray", "ray://HOST:PORT" or "HOST:PORT" for a Ray cluster.
        rows: a results.jsonl of the recipe, whose cells are not trained again.
        settings: settings of every cell that reads them, as in ``train``.

    Raises:
        ConfigError: what is wrong with the recipe, in one line, before any work.
        RunError: which cells failed; the others are done and written.
    """
    source = recipe if isinstance(recipe, Mapping) else Path(recipe)
    folder = None if output is None else Path(output)
    done = run_comparison(
        source, folder, seeds, jobs, dict(flatten(settings)), where=on,
        rows=None if rows is None else Path(rows),
    )  # fmt: skip
    return Comparison(done.output, done.baseline, done.results)


def audit(
    run: Run | str | Path, *, answers: int = 1024, by: str = "domain", reward: Rewards | None = None
) -> Audit:
    """How wrong the reward of a run is, and where, as the critic that it taught sees it.

    Args:
        run: a finished run, or one that has a checkpoint.
        answers: fresh answers to training prompts, which its policy gives and its reward scores.
        by: the column whose values are audited apart.
        reward: functions that were given to ``train`` in Python, which no file holds.

    Returns:
        Reports by group, and a table of the answers, the most surprising reward first; also in
        audit.json and audit.parquet of the run.

    Raises:
        ConfigError: what is no run, or has no critic, in one line.
    """
    functions, paths = read_rewards(reward)
    if paths:
        raise ConfigError("reward: must be the functions that the run was given")
    directory = run.directory if isinstance(run, Run) else Path(run)
    return audit_run(directory, answers, by, Given(rewards=functions))


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
