"""What a run's pictures show, whatever the unit of its rewards."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from dfpo.config import build_config
from dfpo.run.plots import plot_calibration, plot_training, randomised_pit, smooth
from dfpo.run.progress import ValueRecord

RAW = build_config({"algorithm": "ppo", "reward.low": -100.0, "reward.high": 100.0})
RANKED = build_config({"algorithm": "dfpo", "reward.low": 0.0, "reward.high": 1.0})
NOISY = build_config({"reward.low": 0.0, "reward.high": 1.0, "noise": "scale=200"})


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def record(scale, count=400):
    """Quantiles of uniform distributions of width ``scale``, and a return drawn from each."""
    draw = np.random.default_rng(0)
    low = draw.uniform(0, scale, count)
    levels = (np.arange(16) + 0.5) / 16
    returns = low + draw.uniform(0, scale, count)
    return ValueRecord(low[:, None] + scale * levels, returns, returns, np.arange(count))


def steps(count=6, **more):
    row = {
        "reward/noisy": 0.4,
        "reward/clean": 0.5,
        "kl": 0.1,
        "domain/all": 0.5,
        "value/mean": 0.3,
    }
    return [{"step": i, **row, **more} for i in range(count)]


def labels(axes):
    return axes.get_legend_handles_labels()[1]


def test_smooth_by_hand():
    nan = np.nan
    # Windows of three, of two at the ends; what is missing is left out.
    found = smooth(np.array([0.0, 3.0, nan, 6.0, nan]), span=3)
    assert found.tolist() == [1.5, 1.5, 4.5, 6.0, 6.0]
    assert np.isnan(smooth(np.array([nan, nan]), span=3)).all()


def test_ranks_of_returns_in_right_predictions_are_uniform():
    stats = pytest.importorskip("scipy.stats")
    found = record(scale=50.0)
    ranks = randomised_pit(found.quantiles, found.noisy)
    # Sixteen quantiles know a rank to within a sixteenth.
    assert stats.kstest(ranks, "uniform").statistic < 1 / 16 + 1.63 / len(ranks) ** 0.5
    level = np.zeros((500, 8))
    assert stats.kstest(randomised_pit(level, np.zeros(500)), "uniform").pvalue > 0.01, "all ties"


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_calibration_is_seen_whatever_the_unit(scale):
    left = plot_calibration([record(scale)], NOISY).axes[0]
    curves = [c for c in left.containers if c.get_label() == "return seen in training"]
    x, y = curves[0].lines[0].get_data()
    for points, (low, high) in ((x, left.get_xlim()), (y, left.get_ylim())):
        assert low < min(points) and max(points) < high
        assert max(points) - min(points) > 0.3 * (high - low), "no speck in a corner"


def test_calibration_has_the_known_range_where_there_is_one():
    left = plot_calibration([record(1.0)], RAW).axes[0]
    assert left.get_xlim() == pytest.approx((-106, 106))


def test_equal_predictions_are_drawn():
    level = np.full((20, 4), 7.0)
    left = plot_calibration([ValueRecord(level, level[:, 0], level[:, 0], np.arange(20))], NOISY)
    low, high = left.axes[0].get_xlim()
    assert low < 7 < high


def test_a_critic_of_ranks_is_shown_by_a_number_without_unit():
    raw = steps(**{"value/explained_variance": 0.2, "value/bias": 10.0})
    fit = plot_training(raw, RAW).axes[3]
    assert labels(fit) == ["explained variance", "mean bias / reward range"]
    bias = dict(zip(labels(fit), fit.get_legend_handles_labels()[0], strict=True))
    assert bias["mean bias / reward range"].get_ydata() == pytest.approx(10 / 200)

    ranked = steps(**{"value/explained_variance": -4e4, "value/correlation": 0.6})
    fit = plot_training(ranked, RANKED).axes[3]
    assert labels(fit) == ["correlation"]
    assert fit.get_legend_handles_labels()[0][0].get_ydata() == pytest.approx(0.6)
