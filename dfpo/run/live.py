"""A run's curves in the notebook that started it, drawn anew while it trains."""

from __future__ import annotations

import sys
import time
from typing import Any

from dfpo.config import Config
from dfpo.run.records import MetricsLog

SECONDS = 3.0  # between two drawings, which take part of one


def in_notebook() -> bool:
    """Whether a kernel shows what this process displays; IPython in a terminal does not."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class LivePlot:
    """Reward, accuracy, KL and the critic's fit so far, in one output that is replaced."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.shown: Any = None  # IPython's handle of the output
        self.when = 0.0

    def draw(self, log: MetricsLog, *, last: bool = False) -> None:
        if not last and time.monotonic() - self.when < SECONDS:
            return
        from IPython.display import display
        from matplotlib import pyplot

        from dfpo.run.plots import plot_training, styled

        with styled():
            figure = plot_training(log.read(), self.config)
            if self.shown is None:
                self.shown = display(figure, display_id=True)
            else:
                self.shown.update(figure)
            pyplot.close(figure)
        self.when = time.monotonic()


def live_plot(config: Config) -> LivePlot | None:
    """One where there is a notebook to draw in and the run is to be drawn at all."""
    return LivePlot(config) if config.plots and not config.quiet and in_notebook() else None
