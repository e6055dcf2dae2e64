"""``dfpo runs``: the runs in a folder, and how far each is."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dfpo.config import ConfigError, build_config, stored_settings
from dfpo.run.lock import is_held
from dfpo.run.records import is_complete, read_metrics
from dfpo.run.show import printable


@dataclass(frozen=True)
class Listed:
    """One run, as its directory shows it."""

    run: str
    state: str  # at work, finished, stopped; unreadable where its settings are not this version's
    step: int
    steps: int | None
    clean: float | None  # the last step's mean reward
    told: float | None
    algorithm: str | None
    noise: str | None
    seconds: float | None  # of work; None while it is not finished
    idle: float  # seconds since it last wrote


def list_runs(folder: Path) -> list[Listed]:
    """Every run below ``folder``, the one that wrote last at the end. Raises ConfigError where
    there is no such folder."""
    if not folder.is_dir():
        raise ConfigError(f"folder: {folder} is no directory, must be one that holds runs")
    listed = [summarise(run, folder) for run in runs_below(folder)]
    return sorted(listed, key=lambda one: -one.idle)


def runs_below(folder: Path) -> Iterator[Path]:
    """Directories with a config.yaml; what is inside one is its own."""
    for path, folders, files in os.walk(folder):
        if "config.yaml" in files:
            folders.clear()
            yield Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def summarise(run: Path, folder: Path) -> Listed:
    metrics, summary = read_metrics(run), _summary(run)
    last = metrics[-1] if metrics else {}
    try:
        config = build_config(stored_settings("run", run))
    except ConfigError:
        config = None
    if is_held(run):
        state = "at work"
    elif config is None:
        state = "unreadable"
    else:
        state = "finished" if is_complete(run, config) else "stopped"

    return Listed(
        run=str(run.relative_to(folder)) if run != folder else run.name,
        state=state,
        step=len(metrics),
        steps=config and config.steps,
        clean=last.get("reward/clean"),
        told=last.get("reward/noisy"),
        algorithm=config and config.algorithm,
        noise=config and config.noise,
        seconds=summary.get("seconds"),
        idle=max(0.0, time.time() - _last_written(run)),
    )


def _summary(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _last_written(run: Path) -> float:
    known = [run / name for name in ("config.yaml", "metrics.jsonl", "summary.json")]
    return max(path.stat().st_mtime for path in known if path.exists())


def runs_table(listed: list[Listed]) -> str:
    rows = [
        [
            printable(one.run), one.state,
            f"{one.step}/{'?' if one.steps is None else one.steps}", _number(one.clean),
            _number(one.told), one.algorithm or "-", one.noise or "-",
            "-" if one.seconds is None else duration(one.seconds), duration(one.idle),
        ]
        for one in listed
    ]  # fmt: skip
    headers = ["run", "state", "step", "clean", "told", "algorithm", "noise", "took", "wrote (ago)"]
    return tabulate(rows, headers, disable_numparse=True)


def runs_json(listed: list[Listed]) -> str:
    return json.dumps([dataclasses.asdict(one) for one in listed], indent=2)


def _number(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"


def duration(seconds: float) -> str:
    """To two digits, in the largest unit of which there is more than one and a half."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            number = seconds / size
            return f"{number:.2g} {unit}" if number < 10 else f"{number:.0f} {unit}"
    return f"{seconds:.0f} s"
