"""Who else gets metrics and plots: what a tracker is given, read back by TensorBoard itself."""

import numpy as np
import pytest
from matplotlib.image import imsave
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dfpo.config import ConfigError, build_config
from dfpo.run.trackers import check_trackers, start_trackers, track_images


def test_metrics_settings_and_plots_arrive(tmp_path):
    config = build_config({"trackers": "tensorboard", "noise": "flip=0.25"})
    plots = tmp_path / "plots"
    plots.mkdir()
    imsave(plots / "curve.png", np.full((5, 7, 3), 0.5))
    (tracker,) = start_trackers(config, tmp_path)
    tracker.log({"reward/clean": 0.75}, step=3)
    track_images([tracker], plots, 4)
    tracker.finish()

    folder = tmp_path / "tensorboard"
    events = EventAccumulator(str(folder))
    events.Reload()
    (scalar,) = events.Scalars("reward/clean")
    assert (scalar.step, scalar.value) == (3, 0.75)
    (image,) = events.Images("plots/curve")
    assert (image.step, image.height, image.width) == (4, 5, 7)
    settings = "".join(path.read_text() for path in folder.rglob("*.yml"))
    assert "noise: flip=0.25" in settings and "critic.width: 64" in settings


def test_nobody_is_told_unless_asked(tmp_path):
    assert start_trackers(build_config({}), tmp_path) == [] and list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    check_trackers(build_config({"trackers": "tensorboard"}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="trackers: wandb is not installed; pip install"):
        check_trackers(build_config({"trackers": "wandb"}))
