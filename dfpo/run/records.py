"""A run's directory and its records: config.yaml, metrics.jsonl, summary.json."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfpo.config import Config, ConfigError, to_yaml


def choose_run(config: Config) -> Path:
    """The directory of a new run, not yet made. A name that was given must be free; the default
    name gets a number where it is taken."""
    stem = config.name or f"{config.algorithm}-seed{config.seed}"
    run = Path(config.runs_dir) / stem
    count = 1
    while run.exists():
        if config.name:
            raise ConfigError(
                f"name: {run} exists already; give another --name, or continue that run with "
                f"--resume {run}"
            )
        count += 1
        run = Path(config.runs_dir) / f"{stem}-{count}"
    return run


def create_run(
    run: Path, config: Config, store: Callable[[Path], None] = lambda folder: None
) -> None:
    """Makes the directory together with its config.yaml and what ``store`` writes into it: one
    without the other is no run."""
    partial = run.with_name(f".{run.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        # Without its name, which is taken: the file starts the same run again beside this one.
        (partial / "config.yaml").write_text(to_yaml(dataclasses.replace(config, name=None)))
        store(partial)
        os.rename(partial, run)
    except OSError as error:
        raise ConfigError(f"runs_dir: cannot make {run}: {error.strerror}") from None


class MetricsLog:
    """Appends one JSON object a step; keys are in docs/metrics.md. What is not finite, which
    JSON cannot say, is null."""

    def __init__(self, path: Path, steps: int = 0, *, writes: bool = True) -> None:
        """Keeps the first ``steps`` steps of what is there and cuts the rest off. One that does
        not write, in a process beside the first, keeps its records alone."""
        self.path, self.writes = path, writes
        self.records: list[dict[str, Any]] = []
        if not path.exists() or not writes:
            return
        for line in path.read_text().split("\n")[:steps]:
            self.records.append(json.loads(line))
        replace_text(path, "".join(json.dumps(record) + "\n" for record in self.records))

    def append(self, record: dict[str, Any]) -> None:
        record = {k: v if math.isfinite(v) else None for k, v in record.items()}
        self.records.append(record)
        if not self.writes:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def write_json(path: Path, value: Any) -> None:
    replace_text(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def replace_text(path: Path, text: str) -> None:
    """Written beside and renamed, so that a reader never meets half a file."""
    beside = path.with_suffix(".partial")
    beside.write_text(text)
    os.replace(beside, path)


def is_complete(run: Path, config: Config) -> bool:
    """Whether the run has its summary and no steps are left."""
    try:
        done = json.loads((run / "summary.json").read_text())["training"]["steps"]
    except (OSError, ValueError, KeyError):
        return False
    return done >= config.steps


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """One mapping a step; a run of no steps has no file."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
