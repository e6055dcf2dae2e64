"""A run's directory and its records: config.yaml, metrics.jsonl, summary.json, trackers."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import matplotlib.image
from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

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


def create_run(run: Path, config: Config) -> None:
    """Makes the directory together with its config.yaml: one without the other is no run."""
    partial = run.with_name(f".{run.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        # Without its name, which is taken: the file starts the same run again beside this one.
        (partial / "config.yaml").write_text(to_yaml(dataclasses.replace(config, name=None)))
        os.rename(partial, run)
    except OSError as error:
        raise ConfigError(f"runs_dir: cannot make {run}: {error.strerror}") from None


class MetricsLog:
    """Appends one JSON object a step; keys are documented in README. What is not finite, which
    JSON cannot say, is null."""

    def __init__(self, path: Path, steps: int = 0) -> None:
        """Keeps the first ``steps`` steps of what is there and cuts the rest off."""
        self.path = path
        self.records: list[dict[str, Any]] = []
        if not path.exists():
            return
        for line in path.read_text().split("\n")[:steps]:
            self.records.append(json.loads(line))
        replace_text(path, "".join(json.dumps(record) + "\n" for record in self.records))

    def append(self, record: dict[str, Any]) -> None:
        record = {k: v if math.isfinite(v) else None for k, v in record.items()}
        self.records.append(record)
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


def check_trackers(config: Config) -> None:
    for name in config.trackers:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"trackers: {name} is not installed; pip install 'dfpo[trackers]'")


def start_trackers(config: Config, run: Path) -> list[GeneralTracker]:
    """accelerate's trackers of the names in ``config.trackers``, writing into the run where they
    write files at all."""
    makers = {
        "tensorboard": lambda: TensorBoardTracker("tensorboard", run),
        "trackio": lambda: TrackioTracker("dfpo", name=run.name),
        "wandb": lambda: WandBTracker("dfpo", name=run.name, dir=run),
    }
    settings = dict(_scalars("", dataclasses.asdict(config)))
    found = []
    for name in config.trackers:
        tracker = makers[name]()
        tracker.start()
        tracker.store_init_configuration(settings)
        found.append(tracker)
    return found


def track_images(trackers: list[GeneralTracker], folder: Path, step: int) -> None:
    """The plots of a run, as images."""
    paths = sorted(folder.glob("*.png"))
    images = {f"plots/{p.stem}": (matplotlib.image.imread(p) * 255).astype("uint8") for p in paths}
    for tracker in trackers:
        if isinstance(tracker, TrackioTracker):
            import trackio

            tracker.log({name: trackio.Image(image) for name, image in images.items()}, step=step)
        else:
            layout = {"dataformats": "NHWC"} if isinstance(tracker, TensorBoardTracker) else {}
            batches = {name: image[None, ..., :3] for name, image in images.items()}
            tracker.log_images(batches, step=step, **layout)


def _scalars(prefix: str, tree: dict[str, Any]) -> Any:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _scalars(f"{prefix}{key}.", value)
        else:
            plain = isinstance(value, (bool, int, float, str))
            yield f"{prefix}{key}", value if plain else str(value)
