"""Running the cells of a grid: what ``dfpo compare`` and ``dfpo tune`` share."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dfpo.config import ConfigError, build_config, load_yaml
from dfpo.config.build import read_text
from dfpo.rollout.functions import load_rollout
from dfpo.run.lock import AtWork, hold
from dfpo.run.records import write_json
from dfpo.run.setup import load_parts
from dfpo.run.stop import RunError, StopRequest
from dfpo.study.cell import settings_file, write_settings
from dfpo.study.ray_cells import check_ray, run_on_ray
from dfpo.study.recipe import Cell, Recipe, Settings
from dfpo.study.screen import make_board
from dfpo.study.workers import run_cells


def narrow(recipe: Recipe, output: Path | None, seeds: int | None) -> Recipe:
    """The recipe with another output, and with the first ``seeds`` of its seeds."""
    chosen = recipe.seeds if seeds is None else recipe.seeds[:seeds]
    if seeds is not None and not 1 <= seeds <= len(recipe.seeds):
        raise ConfigError(
            f"seeds: is {seeds}, must be 1 to {len(recipe.seeds)}, the recipe's seeds"
        )
    return dataclasses.replace(recipe, output=output or recipe.output, seeds=chosen)


LOCAL = "local"


def run(
    output: Path,
    cells: list[Cell],
    jobs: int | None,
    command: str,
    where: str = LOCAL,
    *,
    rows: Path | None = None,
) -> RunError | None:
    """Checks and trains the cells, as ``command`` asked, and leaves results.jsonl in ``output``;
    returns what to say of those that failed. ``where`` is "local" or a Ray cluster; cells of which
    the file ``rows`` has the result are not trained."""
    train = functools.partial(run_cells, jobs=jobs or cores())
    at_once = f"{jobs or cores()} at a time"
    if where != LOCAL:
        check_ray(where)
        train = functools.partial(run_on_ray, jobs=jobs, where=where)
        at_once = f"on {where}"
    with StopRequest().listen():
        check_begun(cells)
        check_loads(cells)
        known = read_result_rows(rows, cells) if rows else {}

    with locked(output):
        for each in cells:
            write_settings(each)
            if each.place in known and not each.result.exists():
                write_json(each.result, known[each.place])
        done = sum(c.result.exists() for c in cells)
        print(f"{len(cells)} cells, {done} done before, {at_once}; {output}", flush=True)
        try:
            proceed = f"continue with: {command}"
            failed = train(cells, proceed=proceed, show=make_board())
        finally:
            lines = [json.dumps(result) + "\n" for result in read_results(cells)]
            (output / "results.jsonl").write_text("".join(lines), encoding="utf-8")

    if not failed:
        return None
    first, said = next(iter(failed.items()))
    return RunError(
        f"{len(failed)} of {len(cells)} cells failed, the first {first.label}: {said}\n"
        f"{command} tries them again"
    )


def cores() -> int:
    """Those that this process may use, where the system says."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_results(cells: list[Cell]) -> list[dict[str, Any]]:
    """Results of the finished cells, in the order of the grid."""
    return [json.loads(c.result.read_text(encoding="utf-8")) for c in cells if c.result.exists()]


def read_result_rows(
    path: Path, cells: list[Cell]
) -> dict[tuple[str, str, str, int], dict[str, Any]]:
    """Results of some of the cells in a results.jsonl of the same recipe, by their place."""
    places = {cell.place: cell for cell in cells}
    known = {}
    for number, line in enumerate(read_text("rows", path).splitlines(), 1):
        try:
            row = json.loads(line)
            place = (row["domain"], row["noise"], row["arm"], row["seed"])
            base, own = row.get("base"), dict(row["settings"])
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ConfigError(f"rows: line {number} of {path} is no result of a cell") from None
        if place not in places:
            continue
        cell = places[place]
        # Rows of earlier versions do not say what the base was.
        ran = (cell.base if base is None else base) | own | {"seed": cell.seed}
        if names := differing(ran, cell.settings):
            raise ConfigError(
                f"rows: {cell.label} of {path} ran with other settings ({', '.join(names)}); leave "
                "that line out, or the setting as it was"
            )
        known[place] = row
    return known


def check_begun(cells: list[Cell]) -> None:
    """A cell that was begun goes on with its own settings, or not at all."""
    for cell in cells:
        path = settings_file(cell)
        if not path.exists():
            continue
        if names := differing(load_yaml(path), cell.settings):
            raise ConfigError(
                f"{cell.run} was begun with other settings ({', '.join(names)}); give another "
                "--output, or remove it"
            )


def differing(before: Settings, now: Settings) -> list[str]:
    """The names of settings that make another configuration."""
    if build_config(before) == build_config(now):
        return []
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def check_loads(cells: list[Cell]) -> None:
    """What only loading can check, models, prompts and rewards, once for each set of them."""
    parts = {}
    for cell in cells:
        config = build_config(cell.settings)
        key = (config.model, config.task, config.data, config.eval_data, config.reward.functions)
        key = (*key, config.rollout.function)
        parts.setdefault((*key, config.device), (cell, config))

    for cell, config in parts.values():
        try:
            load_parts(config)
            load_rollout(config)
        except ConfigError as error:
            raise ConfigError(f"{cell.label}: {error}") from None


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """One comparison at a time in a directory."""
    with ExitStack() as stack:
        try:
            output.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(output))
        except OSError as error:
            raise ConfigError(f"output: cannot write {output}: {error.strerror}") from None
        except AtWork as who:
            raise ConfigError(f"output: another comparison is at work in {output}: {who}") from None
        yield


def command_line(
    command: str,
    path: Path | None,
    output: Path | None,
    seeds: int | None,
    flags: Settings,
    *,
    where: str = LOCAL,
    rows: Path | None = None,
) -> str:
    """The command that goes on where this one stopped."""
    words = ["dfpo", command, str(path) if path else "--quick"]
    words += ["--output", str(output)] if output else []
    words += ["--seeds", str(seeds)] if seeds else []
    words += ["--on", where] if where != LOCAL else []
    words += ["--rows", str(rows)] if rows else []
    for name, value in flags.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return shlex.join(words)
