"""One of several processes of a run, told by its environment which it is. A module of its own, so
that a fork of another process can import it."""

import os
from unittest import mock

from own_loss import OWN_LOSS

from dfpo.__main__ import main
from dfpo.config import build_config
from dfpo.config.choices import POLICY_LOSSES
from dfpo.run.train import train


def train_runs(runs):
    """A run of each settings, in the present directory."""
    with mock.patch.dict(POLICY_LOSSES, OWN_LOSS):
        for settings in runs:
            train(build_config(settings))


def one_of_them(folder, environment, runs, resumed):
    """Trains several runs, may resume one, and is told something wrong at the end."""
    os.chdir(folder)
    os.environ |= environment
    for number, stream in ((1, "stdout"), (2, "stderr")):
        own = open(f"{environment['RANK']}.{stream}", "w", buffering=1)  # noqa: SIM115
        os.dup2(own.fileno(), number)
    train_runs(runs)
    if resumed:
        assert main(["train", "--resume", f"runs/{resumed}", "--steps", "4"]) == 0
    assert main(["train", "--model", "nowhere"]) == 2
