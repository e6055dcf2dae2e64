"""Tables and plots of results that are made up, against numbers worked out by hand."""

import json
import math
import re
import shutil
import subprocess

import numpy as np

from dfpo.run.records import write_json
from dfpo.study import plots, screen
from dfpo.study import tables as written
from dfpo.study.results import mixed_versions

# Made-up results of two arms under two noises on three seeds: (id, ood) after.
MADE_UP = {
    ("none", "ppo"): [(0.80, 0.60), (0.70, 0.60), (0.90, 0.60)],
    ("none", "new"): [(0.82, 0.50), (0.73, 0.50), (0.94, 0.50)],
    ("flip=0.3", "ppo"): [(0.50, 0.40), (0.60, 0.40), (0.10, 0.10)],
    ("flip=0.3", "new"): [(0.50, 0.50), (0.61, 0.30), (0.52, 0.40)],
}


def made_up():
    return [
        {
            "domain": "suite", "noise": noise, "arm": arm, "seed": seed, "metric": "accuracy",
            "before": {"id": 0.5, "ood": 0.4, "all": 0.45},
            "after": {"id": i, "ood": o, "all": (i + o) / 2, "all_greedy": 1.0},
            "benchmarks": {"a_b/id": {"prompts": 9, "before": 0.5, "after": i},
                           "a_b/ood": {"prompts": 9, "before": 0.4, "after": o}},
            "collapsed": (i + o) / 2 < 0.225, "kl": 0.5 + seed, "response_length": 30.0,
            "training_reward_area": 0.6, "answers": 36, "tokens": 1000, "policy_updates": 4,
            "version": "0.1.0+abc", "settings": {}, "algorithm": arm,
        }
        for seed in range(3)
        for (noise, arm), finals in MADE_UP.items()
        for i, o in [finals[seed]]
    ]  # fmt: skip


def test_tables_say_what_the_results_are():
    made = written.tables(made_up(), "ppo", written.MARKDOWN)
    _, levels, differences, training, benchmarks = made
    assert [row[1:3] for row in levels.rows] == [
        ["none", "ppo"], ["none", "new"], ["flip=0.3", "ppo"], ["flip=0.3", "new"]
    ]  # fmt: skip
    # ID AVG of ppo without noise: mean .8, deviation .1; KL mean 1.5, deviation 1.
    assert levels.rows[0] == [
        "suite", "none", "ppo", "3", "0.800 ± 0.100", "0.600 ± 0.000", "0.700 ± 0.050",
        "0/3 [0.00, 0.56]", "1.50 ± 1.00",
    ]  # fmt: skip
    assert levels.rows[2][7].startswith("1/3 ["), "(.1 + .1)/2 is below half of .45"
    # new - ppo on ID: .02, .03, .04: mean .03, s = .01, t_2(.975) = 4.303: -+ .0248; the
    # bootstrap's ends lie between its two most extreme means.
    first = differences.rows[0]
    assert first[2:6] == ["new", "ID AVG", "**+3.0**", "[+0.5, +5.5]"]
    low, high = map(float, re.findall(r"[-+][\d.]+", first[6]))
    assert 2.0 <= low <= 2.4 and 3.6 <= high <= 4.0
    assert first[7] == "3/3"
    # On OOD it is -.1 three times: no spread at all.
    assert differences.rows[1][3:6] == ["OOD AVG", "**-10.0**", "[-10.0, -10.0]"]
    # Under flips ID: 0, .01, .42: not sure.
    assert differences.rows[3][4] == "+14.3" and differences.rows[3][7] == "2/3"
    assert "6 differences have intervals, of which\n0.3" in differences.text
    assert "budget" not in differences.text
    assert "on held-out prompts with" in levels.text
    assert training.rows[0][3:] == [
        "1.000 ± 0.000",
        "0.600 ± 0.000",
        "30.0 ± 0.0",
        "36",
        "1000",
        "4",
    ]
    assert benchmarks.rows[0] == ["suite", "", "first policy", "0.500", "0.400"]
    assert benchmarks.text.endswith("Prompts of suite: a_b/id 9, a_b/ood 9.")
    assert benchmarks.headers[3:] == ["a_b/id", "a_b/ood"]


def test_latex_is_well_formed(tmp_path):
    text = written.latex(written.tables(made_up(), "ppo", written.LATEX), "dfpo compare x_y.yaml")
    assert text.startswith("% dfpo compare")
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 5
    for body in re.findall(r"\\begin\{tabular\}(.*?)\\end\{tabular\}", text, re.S):
        columns = len(re.match(r"\{(l+)\}", body)[1])
        rows = [line for line in body.split("\n") if line.endswith(r" \\")]
        assert len(rows) > 2
        assert all(row.count(" & ") == columns - 1 for row in rows)
    plain = (
        re.sub(r"\\[%_&#$]|^%.*$", "", text, flags=re.M).replace(r"$\pm$", "").replace("$-$", "")
    )
    assert not re.search(r"[_%#$–±]", plain.replace("&", ""))
    assert r"a\_b/id" in text and r"\textbf{+3.0}" in text
    if shutil.which("pdflatex"):
        page = r"\documentclass{article}\usepackage{booktabs}\begin{document}%s\end{document}"
        (tmp_path / "t.tex").write_text(page % text)
        command = ["pdflatex", "-interaction=batchmode", "-halt-on-error", "t.tex"]
        subprocess.run(command, cwd=tmp_path, check=True)


def test_one_seed_and_missing_averages_have_no_interval():
    alone = [r for r in made_up() if r["seed"] == 0]
    for r in alone:
        r["after"] = {"id": r["after"]["id"], "all": r["after"]["id"]}
    _, levels, differences, *_ = written.tables(alone, "ppo", written.MARKDOWN)
    assert levels.rows[0][4:7] == ["0.800", "–", "0.800"]
    assert [row[3] for row in differences.rows[:2]] == ["ID AVG", "ALL AVG"]
    assert differences.rows[0][4:] == ["+2.0", "–", "–", "1/1"]
    assert "No difference has an interval" in differences.text
    assert "by chance" not in differences.text


def test_only_differences_with_an_interval_can_be_bold_by_chance():
    """Three without noise have three seeds each, two under flips one alone."""
    found = [r for r in made_up() if r["noise"] == "none" or r["seed"] == 0]
    for r in found:
        if r["noise"] != "none":
            del r["after"]["ood"]
    differences = written.tables(found, "ppo", written.MARKDOWN)[2]
    assert len(differences.rows) == 5
    assert "3 differences have intervals, of which\n0.2" in differences.text


def test_arms_on_another_budget_are_named_above_the_differences():
    found = made_up()
    for r in found:
        if (r["arm"], r["noise"]) == ("new", "flip=0.3"):
            r["policy_updates"] += 2
    differences = written.tables(found, "ppo", written.MARKDOWN)[2]
    assert differences.text.endswith("\n\nNot on the budget of ppo: new (policy updates).")


def test_every_domain_has_its_first_policy_and_its_prompts():
    found = made_up()
    for r in made_up():
        r["domain"] = "own"
        r["benchmarks"] = {"c/train": {"prompts": 7, "before": 0.2, "after": 0.3}}
        found.append(r)
    _, levels, _, _, benchmarks = written.tables(found, "ppo", written.MARKDOWN)
    assert benchmarks.rows[:2] == [
        ["suite", "", "first policy", "0.500", "0.400", "–"],
        ["own", "", "first policy", "–", "–", "0.200"],
    ]
    assert benchmarks.text.endswith("Prompts of suite: a_b/id 9, a_b/ood 9; own: c/train 7.")
    assert "on held-out prompts or, in /train, training prompts (no others" in levels.text
    alone = written.tables(found[len(found) // 2 :], "ppo", written.MARKDOWN)[1]
    assert "on training prompts (no others were given) with clean" in alone.text
    assert "held-out" not in alone.text


def test_cells_of_several_versions_are_counted(tmp_path):
    found = made_up()
    found[0]["version"] = "0.1.0+xyz"
    written.write_tables(tmp_path, found, "ppo", "dfpo compare")
    said = "more than one version of the code: 11 of dfpo 0.1.0+abc, 1 of dfpo 0.1.0+xyz."
    for name in ("table.md", "table.tex"):
        assert said in (tmp_path / name).read_text().split("## Levels")[0]
    assert mixed_versions(found[1:]) == ""


def test_a_broken_seed_takes_the_bold_away(tmp_path):
    """Without noise, new is ahead by 2, 3 and 4 points; its last seed ended at nothing finite."""
    found = made_up()
    broken = next(r for r in found if (r["noise"], r["arm"], r["seed"]) == ("none", "new", 2))
    broken["after"] |= {"id": math.nan, "all": math.nan}
    write_json(tmp_path / "x.json", broken)
    assert "NaN" not in (tmp_path / "x.json").read_text()
    broken |= json.loads((tmp_path / "x.json").read_text())
    _, levels, differences, *_ = written.tables(found, "ppo", written.MARKDOWN)
    assert levels.rows[1][4] == "not finite"
    assert differences.rows[0][3:] == ["ID AVG", "not finite", "–", "–", "2/3"]
    assert differences.rows[1][4] == "**-10.0**", "OOD AVG is finite"
    plots.plot_levels(found)
    plots.plot_differences(found, "ppo")
    assert screen.score_words(broken)[0] == "id not finite"
    assert screen.mean([0.5, None]) == "not finite" and screen.mean([]) == ""


def test_a_domain_may_have_no_out_of_domain_benchmark(tmp_path):
    found = made_up()
    for r in made_up():
        r["domain"] = "narrow"
        r["before"], r["after"] = (
            {k: t[k] for k in ("id", "all")} for t in (r["before"], r["after"])
        )
        del r["benchmarks"]["a_b/ood"]
        found.append(r)
    written.write_tables(tmp_path, found, "ppo", "dfpo compare")
    plots.plot_comparison(tmp_path, found, "ppo")
    assert (tmp_path / "plots/levels.png").is_file()
    shown = [ax.axison for ax in plots.plot_levels(found).axes]
    assert shown == [True, True, True, True, False, True]


def test_curves_are_mean_and_range_over_seeds():
    key = ("suite", "none", "ppo")
    values = plots.stack([[0.2] * 4, [0.6] * 4])
    ax = plots.plot_curves({key: values}).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.4] * 4)
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0.2, 0.6)


def test_levels_are_means_against_noise():
    axes = plots.plot_levels(made_up()).axes
    assert [ax.get_title() for ax in axes] == ["ID AVG, suite", "OOD AVG, suite", "ALL AVG, suite"]
    ppo, new = (container.lines[0].get_ydata(orig=False) for container in axes[0].containers)
    np.testing.assert_allclose(ppo, [0.8, 0.4])
    np.testing.assert_allclose(new, [0.83, 1.63 / 3])
    assert [t.get_text() for t in axes[0].get_xticklabels()] == ["none", "flip=0.3"]


def test_forest_plot_shows_seeds_means_and_intervals():
    ax = plots.plot_differences(made_up(), "ppo").axes[0]
    seeds, mean = ax.collections[0].get_offsets(), ax.collections[1].get_offsets()
    np.testing.assert_allclose(seeds[:, 0], [2.0, 3.0, 4.0])
    np.testing.assert_allclose(mean, [[3.0, 0.0]])
    student = ax.lines[0].get_xdata()
    np.testing.assert_allclose(student, [3 - 2.484, 3 + 2.484], atol=1e-2)
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "new   suite none",
        "new   suite flip=0.3",
    ]
