"""A run's directory and its records: config.yaml, metrics.jsonl, summary.json."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from dfpo.config import Config, ConfigError, to_yaml


def create_run(config: Config) -> Path:
    """Makes the directory of a new run. A name that was given must be free; the default name
    gets a number where it is taken. Raises ConfigError otherwise."""
    runs = Path(config.runs_dir)
    stem = config.name or f"{config.algorithm}-seed{config.seed}"
    run = runs / stem
    count = 1
    while run.exists():
        if config.name:
            raise ConfigError(
                f"name: {run} exists already; give another --name or remove that directory"
            )
        count += 1
        run = runs / f"{stem}-{count}"
    try:
        run.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"runs_dir: cannot make {run}: {error.strerror}") from None
    (run / "config.yaml").write_text(to_yaml(config))
    return run


class MetricsLog:
    """Appends one JSON object a step; keys are documented in README. What is not finite, which
    JSON cannot say, is null."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []

    def append(self, record: dict[str, Any]) -> None:
        record = {k: v if math.isfinite(v) else None for k, v in record.items()}
        self.records.append(record)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def write_json(path: Path, value: Any) -> None:
    """Written beside and renamed, so that a reader never meets half a file."""
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(beside, path)
