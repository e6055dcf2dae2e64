"""Arms over all noises, of results that are made up, against numbers worked out by hand."""

import math

import numpy as np
import pytest

from dfpo.study import overview, plots
from dfpo.study import tables as written

# (noise, arm) -> final averages on seeds 0, 1, 2.
FINALS = {
    ("none", "ppo"): [0.80, 0.70, 0.90],
    ("none", "new"): [0.81, 0.72, 0.93],
    ("heavy", "ppo"): [0.40, 0.50, 0.60],
    ("heavy", "new"): [0.51, 0.62, 0.73],
}


def results(finals=FINALS, seeds=3):
    return [
        {
            "domain": "suite", "noise": noise, "arm": arm, "seed": seed, "after": {"all": value},
            "collapsed": value < 0.45,
        }
        for (noise, arm), values in finals.items()
        for seed, value in enumerate(values[:seeds])
    ]  # fmt: skip


def test_an_arm_is_its_mean_and_its_worst_over_noises():
    ppo, new = overview.overviews(results(), "ppo")
    assert (ppo.arm, new.arm, ppo.difference) == ("ppo", "new", None)
    assert ppo.means == pytest.approx([0.6, 0.6, 0.75])
    assert new.means == pytest.approx([0.66, 0.67, 0.83])
    assert ppo.worst == (pytest.approx(0.5), "heavy")
    # .12 below the other arm under heavy tails, .02 without noise.
    assert ppo.behind == (pytest.approx(0.12), "heavy")
    assert new.behind[0] == 0
    assert (ppo.collapsed, new.collapsed) == (1, 0)
    # .06, .07, .08: mean .07, s = .01, t_2(.975) = 4.303 over sqrt 3: -+ .0248.
    assert new.difference.mean == pytest.approx(0.07)
    assert new.difference.student == pytest.approx((0.07 - 0.0248, 0.07 + 0.0248), abs=1e-4)


def test_intervals_hold_for_all_arms_together():
    third = {("none", "third"): [0.8, 0.7, 0.9], ("heavy", "third"): [0.4, 0.5, 0.6]}
    _, new, same = overview.overviews(results(FINALS | third), "ppo")
    # Two comparisons: t_2(.9875) = 6.205.
    assert new.difference.student[1] == pytest.approx(0.07 + 6.205 * 0.01 / math.sqrt(3), abs=1e-4)
    assert same.difference.student == (0, 0)


def test_only_seeds_that_are_complete_count():
    """Seed 2 of one arm is missing under one noise: no arm is judged by it."""
    cut = [r for r in results() if (r["noise"], r["arm"], r["seed"]) != ("heavy", "new", 2)]
    ppo, new = overview.overviews(cut, "ppo")
    assert ppo.means == pytest.approx([0.6, 0.6])
    assert new.difference.seeds == 2
    assert overview.overviews([r for r in results() if r["noise"] == "none"], "ppo") == []


def test_the_middle_half_and_the_share_above():
    # Of eight values two on either side are left out: (3 + 4 + 5 + 6) / 4.
    assert overview.interquartile_mean(np.array([[1, 2, 3, 4], [5, 6, 7, 80]])) == 4.5
    assert overview.interquartile_mean(np.array([3.0])) == 3
    shares = overview.profile(np.array([[0.2, 0.4], [0.6, 0.8]]), np.array([0.0, 0.4, 0.7, 0.8]))
    assert shares.tolist() == [1, 0.5, 0.25, 0]


def test_a_run_that_broke_leaves_no_mean():
    broken = results()
    broken[-1]["after"]["all"] = None
    _, new = overview.overviews(broken, "ppo")
    assert math.isnan(new.means[2]) and math.isnan(new.difference.mean)


def test_the_table_and_the_figure_say_it():
    every = overview.overviews(results(), "ppo")
    table = written.over_noises(every, "ppo", written.MARKDOWN)
    assert table.rows[0][2:] == [
        "0.650 ± 0.087", "0.650", "0.500 heavy", "-12.0 heavy", "1/6", "–", "–", "–", "–",
    ]  # fmt: skip
    assert table.rows[1][5] == "best in all"
    assert table.rows[1][7:9] == ["**+7.0**", "[+4.5, +9.5]"]
    assert "over the 3 seeds" in table.text
    figure = plots.plot_overview(every, "ppo")
    assert [ax.get_title() for ax in figure.axes] == [
        "suite, mean over noises", "runs that end above"
    ]  # fmt: skip
