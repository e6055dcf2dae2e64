"""Who else gets a run's metrics and plots: TensorBoard, trackio, W&B, through accelerate."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from dfpo.config import Config, ConfigError


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
    started = []

    for name in config.trackers:
        tracker = makers[name]()
        tracker.start()
        tracker.store_init_configuration(settings)
        started.append(tracker)

    return started


def track_images(trackers: list[GeneralTracker], folder: Path, step: int) -> None:
    """The plots of a run, as images."""
    from matplotlib.image import imread

    paths = sorted(folder.glob("*.png"))
    images = {f"plots/{p.stem}": (imread(p) * 255).astype("uint8") for p in paths}
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
