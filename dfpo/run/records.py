"""A run's directory and its records: config.yaml, metrics.jsonl, summary.json."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dfpo.config import Config, ConfigError, to_yaml

RUN_ID = "run_id"  # a file of its directory
LONGEST_NAME = 100


def choose_run(config: Config) -> Path:
    """The directory of a new run, not yet made. A name that was given must be free; the default
    name gets a number where it is taken. Raises ConfigError."""
    if config.name is not None:
        check_name(config.name)
    stem = config.name or f"{config.algorithm}-seed{config.seed}"
    run = Path(config.runs_dir) / stem
    count = 1

    while run.exists() or run.is_symlink():
        if config.name:
            raise ConfigError(
                f"name: {run} exists already; give another --name, or continue that run with "
                f"--resume {run}"
            )
        count += 1
        run = Path(config.runs_dir) / f"{stem}-{count}"

    return run


def check_name(name: str) -> None:
    """A run's name is one folder of runs_dir, on any file system and in any terminal."""
    shown = ascii(name if len(name) <= 30 else name[:27] + "...")
    if not name.strip() or name != name.strip():
        raise ConfigError(f"name: is {shown}, must not begin or end with a space or be empty")
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        raise ConfigError(
            f"name: is {shown}, of {len(name)} letters, must take at most {LONGEST_NAME} bytes"
        )

    if any(c in "/\\" or not c.isprintable() for c in name) or name.startswith("."):
        raise ConfigError(
            f"name: is {shown}, must be one folder's name: no separator, no control character, no "
            "dot at its start"
        )

    if name.split(".")[0].upper() in RESERVED or name.endswith("."):
        raise ConfigError(f"name: is {shown}, must not be a name that an operating system reserves")


# Of Windows, whose disks are mounted elsewhere too.
RESERVED = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{port}{i}" for port in ("COM", "LPT") for i in range(10)),
}


def create_run(
    run: Path, config: Config, store: Callable[[Path], None] = lambda folder: None
) -> None:
    """Makes the directory together with its config.yaml and what ``store`` writes into it: one
    without the other is no run. Of two that start at once, one makes it."""
    partial = run.with_name(f".{run.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        # Without its name, which is taken: the file starts the same run again beside this one.
        (partial / "config.yaml").write_text(
            to_yaml(dataclasses.replace(config, name=None)), encoding="utf-8"
        )
        (partial / RUN_ID).write_text(f"{uuid.uuid4().hex}\n", encoding="utf-8")
        store(partial)
        os.rename(partial, run)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ConfigError(f"name: {run} was just taken by another run; start again") from None
        raise ConfigError(f"runs_dir: cannot make {run}: {error.strerror}") from None


class MetricsLog:
    """Appends one JSON object a step; keys are in docs/metrics.md. What is not finite, which
    JSON cannot say, is null. The file alone holds them: a long run's memory does not grow."""

    def __init__(self, path: Path, steps: int = 0, *, writes: bool = True) -> None:
        """Keeps the first ``steps`` steps of what is there and cuts the rest off. One that does
        not write is of a process beside the first. Raises ConfigError where a line is broken, and
        not only when the run has come to its end and reads them all."""
        self.path, self.writes = path, writes
        if writes and path.exists():
            lines = path.read_text(encoding="utf-8").split("\n")[:-1][:steps]
            for number, line in enumerate(lines, 1):
                try:
                    json.loads(line)
                except ValueError as error:
                    raise ConfigError(
                        f"resume: line {number} of {path} is no JSON: {error}"
                    ) from None
            replace_text(path, "".join(f"{line}\n" for line in lines))

    def append(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record as it was written."""
        record = {k: v if math.isfinite(v) else None for k, v in record.items()}
        if self.writes:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        return record

    def read(self) -> list[dict[str, Any]]:
        return read_lines(self.path)


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
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def is_complete(run: Path, config: Config) -> bool:
    """Whether the run has its summary and no steps are left, or it ended by ``eval.patience``."""
    try:
        training = json.loads((run / "summary.json").read_text(encoding="utf-8"))["training"]
        done = training["steps"]
    except (OSError, ValueError, KeyError):
        return False
    patience = config.eval.patience
    gave_up = patience and training.get("evaluations_without_gain", 0) >= patience
    return bool(done >= config.steps or gave_up)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """One mapping a step; a run of no steps has no file. A line that is being written counts as
    not there yet."""
    return read_lines(run / "metrics.jsonl")


def read_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def labels(runs: list[str]) -> list[str]:
    """The shortest ends of the paths of different runs that tell them apart."""
    paths = [Path(run).resolve().parts for run in runs]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names
