"""The page of a comparison: its data by hand; in a browser what the filters leave."""

import json
import re

import numpy as np
import pytest

from dfpo.study.page import curve_data, forest_rows, render_study, write_comparison

HOSTILE = "</script><img src=x onerror='hacked = 1'>"
FINALS = {"ppo": (0.80, 0.70, 0.90), "new": (0.82, 0.73, 0.94)}


def results(arm="new", noises=("none", "flip=0.3")):
    names = {"ppo": "ppo", "new": arm}
    return [
        {
            "domain": "suite", "noise": noise, "arm": names[key], "seed": seed,
            "metric": "accuracy", "before": {"id": 0.5, "all": 0.5},
            "after": {"id": finals[seed], "all": finals[seed], "all_greedy": 1.0},
            "benchmarks": {"math/id": {"prompts": 9, "before": 0.5, "after": finals[seed]}},
            "collapsed": False, "kl": 0.5, "response_length": 30.0, "training_reward_area": 0.6,
            "answers": 36, "tokens": 1000, "policy_updates": 4, "version": "0.1.0+abc",
            "settings": {}, "algorithm": "ppo",
        }
        for noise in noises for key, finals in FINALS.items() for seed in range(3)
    ]  # fmt: skip


def make_comparison(folder, **changed):
    made = results(**changed)
    for run in made:
        cell = folder / "cells" / "suite" / run["noise"] / run["arm"] / f"seed{run['seed']}"
        cell.mkdir(parents=True)
        lines = [{"step": i, "reward/clean": 0.1 * i + 0.01 * run["seed"]} for i in range(4)]
        (cell / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    write_comparison(folder, made, "ppo", "dfpo compare grid.yaml")
    return folder / "report.html"


def test_differences_by_hand():
    first = forest_rows(results(), "ppo")[0]
    # 2, 3 and 4 points: mean 3, s = 1, t_2(.975) = 4.303: -+ 2.484.
    assert (first["arm"], first["panel"], first["mean"]) == ("new", "ID AVG", 3.0)
    assert first["thin"] == pytest.approx([0.516, 5.484], abs=1e-3)
    assert first["seeds"] == pytest.approx([2, 3, 4])


def test_curves_by_hand():
    seeds = np.array([[0.0, 1.0, np.nan], [0.5, 2.0, 3.0]])
    (panel,) = curve_data({("suite", "none", "ppo"): seeds})
    assert panel["x"] == [0, 1, 2]
    assert panel["arms"]["ppo"] == {
        "mean": [0.25, 1.5, None], "low": [0.0, 1.0, None], "high": [0.5, 2.0, None],
    }  # fmt: skip
    many = {("suite", "none", f"arm{i}"): np.zeros((1, 10**5)) for i in range(5)}
    assert len(curve_data(many)[0]["x"]) == 25_000  # 12 million letters are four times the room


def test_nothing_but_data_is_hostile(tmp_path):
    page = render_study(HOSTILE, {"arms": [HOSTILE]})
    assert "<img" not in page and page.count("<script") == 2


def test_filters_hold_for_curves_intervals_and_tables(browser, tmp_path):
    page = browser.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    page.goto(make_comparison(tmp_path, arm="a<b>").as_uri())
    titles = page.locator("#charts .u-title")
    assert titles.all_inner_texts() == ["suite, none", "suite, flip=0.3"]
    # ID AVG and ALL AVG, an interval under each noise.
    assert page.locator("#forest figure").count() == 2
    assert page.locator("#forest circle").count() == 2 * 2 * 4  # a mean and three seeds
    said = page.locator("#forest text[text-anchor=end]").first.text_content()
    assert re.fullmatch(r"[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]", said), said
    page.select_option("#f-noise", label="none")
    assert titles.all_inner_texts() == ["suite, none"]
    assert page.locator("#forest circle").count() == 2 * 4
    levels = page.locator("#all-tables table").nth(1)
    assert levels.locator("tbody td:nth-child(3)").all_inner_texts() == ["ppo", "a<b>"]
    page.get_by_label("a<b>").uncheck()
    assert levels.locator("tbody td:nth-child(3)").all_inner_texts() == ["ppo"]
    assert page.locator("#forest circle").count() == 0
    assert page.locator("#charts .u-series:visible").count() == 2
    # On a phone wide tables scroll within the page, and their lines stay lines.
    page.set_viewport_size({"width": 390, "height": 844})
    for _ in range(100):  # the page's policy lets no script of a string wait in it
        width = page.evaluate("document.documentElement.scrollWidth")
        if width == 390:
            break
        page.wait_for_timeout(50)
    assert width == 390
    heights = page.locator("#all-tables td").evaluate_all("cells => cells.map(c => c.offsetHeight)")
    assert 0 < max(heights) < 40
    page.close()
    assert wrong == []
