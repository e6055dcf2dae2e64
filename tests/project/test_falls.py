"""results/stability/falls.py: the peak of a curve without the luck of the best of many, by hand."""

import runpy
from pathlib import Path

import numpy as np
import pytest

FALLS = runpy.run_path(str(Path(__file__).parents[2] / "results/stability/falls.py"))
WINDOW = FALLS["WINDOW"]


def test_what_was_lost_is_the_height_of_the_plateau_over_the_end():
    rise, plateau, end = [0.2] * 60, [0.9] * 60, [0.6] * 60
    assert FALLS["peak_and_end"]([*rise, *plateau, *end]) == pytest.approx((0.9, 0.6))


def test_a_run_that_only_rises_loses_nothing():
    curve = [i / 200 for i in range(200)]
    peak, end = FALLS["peak_and_end"](curve)
    # The last window's odd steps: 171, 173, ..., 199.
    assert peak == end == pytest.approx(np.mean(range(200 - WINDOW + 1, 200, 2)) / 200)


def test_noise_alone_makes_no_peak():
    """The best of 271 windows by the steps that chose it is well above the mean; by the others it
    is the mean, here within four standard errors over the runs."""
    draws = np.random.default_rng(0).normal(0.5, 0.06, size=(400, 300))
    peaks = [FALLS["peak_and_end"](list(curve))[0] for curve in draws]
    error = 0.06 / (WINDOW / 2) ** 0.5 / 400**0.5
    assert abs(np.mean(peaks) - 0.5) < 4 * error
