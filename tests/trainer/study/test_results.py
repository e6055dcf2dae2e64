"""Results grouped by arm and paired seed by seed."""

import math

import pytest

from dfpo.study.results import groups, mixed_versions, paired, per_seed


def result(arm, seed, after, noise="none", version="0.1.0+a"):
    return {
        "domain": "suite", "noise": noise, "arm": arm, "seed": seed, "after": after,
        "version": version,
    }  # fmt: skip


RESULTS = [
    result("new", 1, {"id": 0.5}),
    result("ppo", 1, {"id": 0.4}),
    result("new", 2, {"id": 0.9}),
    result("ppo", 2, {"id": 0.7}),
    result("ppo", 1, {"id": 0.1}, noise="flip=0.3"),
]


def test_groups_are_in_the_order_of_the_grid_along_every_axis():
    found = groups(RESULTS)
    assert [key[1:] for key in found] == [("none", "new"), ("none", "ppo"), ("flip=0.3", "ppo")]
    assert [r["seed"] for r in found["suite", "none", "new"]] == [1, 2]


def test_what_is_not_finite_is_no_number_and_what_is_not_there_is_left_out():
    runs = [result("a", 1, {"id": None}), result("a", 2, {}), result("a", 3, {"id": 0.5})]
    found = per_seed(runs, "id")
    assert set(found) == {1, 3} and math.isnan(found[1]) and found[3] == 0.5


def test_arms_are_paired_with_the_baseline_of_their_own_noise():
    ((key, group, difference),) = paired(RESULTS, "ppo")
    assert key == ("suite", "none", "new") and group == "id"
    # .5 - .4 and .9 - .7
    assert difference.mean == pytest.approx(0.15)


def test_versions_are_counted_where_there_are_several():
    assert mixed_versions(RESULTS) == ""
    other = result("new", 3, {}, version="0.2.0+b")
    assert mixed_versions([*RESULTS, other]) == (
        "The 6 runs are of more than one version of the code: 5 of dfpo 0.1.0+a, 1 of dfpo 0.2.0+b."
    )
