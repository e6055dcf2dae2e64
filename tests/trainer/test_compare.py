"""A grid of four small runs: its results, how it stops and goes on, its tables and plots."""

import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from statistics import fmean

import numpy as np
import pytest
import yaml

from dfpo import board, compare_plots, pool, report
from dfpo.cli import main
from dfpo.config import ConfigError
from dfpo.grid import Cell, grid, load_recipe, parse_recipe
from dfpo.log import write_json

STEPS = 8
RECIPE = {
    "seeds": [3, 4],
    "arms": ["ppo", "dfpo"],
    "noises": ["flip=0.5"],
    "base": {
        "steps": STEPS,
        "rollout": {"prompts": 3, "samples": 2, "max_new_tokens": 36},
        "critic": {"warmup_steps": 2, "warmup_epochs": 1, "num_quantiles": 5},
        "eval.prompts": 2,
        "checkpoint_every": 1,
    },
}
CELLS = [f"suite/flip=0.5/{arm}/seed{seed}" for seed in (3, 4) for arm in ("ppo", "dfpo")]


def write(folder, **changes):
    """A recipe whose output is beside it."""
    path = folder / "grid.yaml"
    path.write_text(
        yaml.safe_dump(RECIPE | {"output": str(folder / "out")} | changes, sort_keys=False)
    )
    return str(path)


def results(folder):
    """Without what depends on the machine, and on what is edited while tests run."""
    lines = (folder / "out/results.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for result in found:
        assert result.pop("cost")["cpu_seconds"] > 0
        assert re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{8}", result.pop("version"))
    return found


def metrics(folder, cell):
    lines = (folder / "out/cells" / cell / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if not k.startswith("perf/")} for x in lines]


def wait_for(condition, seconds=120):
    for _ in range(seconds * 100):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def begun(folder, cell):
    """Whether the cell has a checkpoint and steps to go."""
    run = folder / "out/cells" / cell
    found = sorted(p.name for p in (run / "checkpoints").glob("step-*"))
    return bool(found) and found[-1] >= "step-000002" and not (run / "summary.json").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The grid that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["compare", write(folder), "--jobs", "2"]) == 0
    return folder


def test_results_say_what_the_runs_say(whole):
    found = results(whole)
    assert [(r["arm"], r["seed"]) for r in found] == [
        ("ppo", 3), ("dfpo", 3), ("ppo", 4), ("dfpo", 4)
    ]  # fmt: skip
    run = whole / "out/cells" / CELLS[1]
    summary = json.loads((run / "summary.json").read_text())
    ours = found[1]
    domains = summary["domains"]
    for group, splits in (("id", ["id"]), ("ood", ["ood"]), ("all", ["id", "ood"])):
        for when in ("before", "after"):
            cells = [domains[d][when][s] for d in domains for s in splits]
            assert ours[when][group] == pytest.approx(fmean(c["sampled"] for c in cells))
            assert ours[when][f"{group}_greedy"] == pytest.approx(fmean(c["greedy"] for c in cells))
    assert (
        ours["benchmarks"]["math/ood"]["after_se"] == domains["math"]["after"]["ood"]["sampled_se"]
    )
    steps = metrics(whole, CELLS[1])
    assert ours["training_reward_area"] == pytest.approx(fmean(m["reward/clean"] for m in steps))
    assert ours["kl"] == steps[-1]["kl"], "the last tenth of eight steps is the last"
    assert ours["tokens"] == sum(m["tokens"] for m in steps)
    # Eight steps of three prompts twice, two of them warm the critic up.
    assert (ours["answers"], ours["policy_updates"]) == (48, 6)
    assert ours["settings"] == {"algorithm": "dfpo", "noise": "flip=0.5"}
    assert not (run / "plots").exists()


def test_arms_share_prompts_and_draws_seed_by_seed(whole):
    ppo, dfpo, other, _ = (metrics(whole, cell) for cell in CELLS)
    for key in ("reward/clean", "reward/noisy", "response_length", "entropy"):
        # Until the policies part, after the first update that follows the warm-up.
        assert [m[key] for m in ppo[:3]] == [m[key] for m in dfpo[:3]]
    assert ppo[0]["loss/critic"] != dfpo[0]["loss/critic"]
    assert ppo[0]["entropy"] != other[0]["entropy"]
    before = [r["before"] for r in results(whole)]
    assert all(b == before[0] for b in before), "one first policy, one set of test prompts"


def test_a_finished_grid_is_not_repeated(whole, capsys):
    stamps = [(whole / "out/cells" / f"{c}.result.json").stat().st_mtime_ns for c in CELLS]
    table = (whole / "out/table.md").read_text()
    assert main(["compare", write(whole)]) == 0
    assert "4 cells, 4 done before" in capsys.readouterr().out
    assert stamps == [(whole / "out/cells" / f"{c}.result.json").stat().st_mtime_ns for c in CELLS]
    assert (whole / "out/table.md").read_text() == table


def test_a_killed_grid_goes_on_without_repeating(tmp_path, whole):
    words = ["compare", write(tmp_path), "--jobs", "1"]
    # Its own process, with the trainer loaded already.
    process = pool.server().Process(target=main, args=(words,))
    process.start()
    wait_for(lambda: begun(tmp_path, CELLS[1]), 300)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    first = tmp_path / "out/cells" / f"{CELLS[0]}.result.json"
    stamp = first.stat().st_mtime_ns
    assert not (tmp_path / "out/cells" / f"{CELLS[1]}.result.json").exists()
    assert main(words) == 0
    assert first.stat().st_mtime_ns == stamp
    said = (tmp_path / "out/cells" / f"{CELLS[1]}.log").read_text()
    assert f"of {STEPS} steps" in said and "continues after" in said
    assert results(tmp_path) == results(whole)
    for cell in CELLS:
        assert metrics(tmp_path, cell) == metrics(whole, cell)
    ours, theirs = ((f / "out/table.md").read_text() for f in (tmp_path, whole))
    assert ours.split("\n")[5:] == theirs.split("\n")[5:], "all but the command and the version"


def test_sigterm_stops_cells_with_a_checkpoint_and_says_how_to_go_on(tmp_path, whole, capsys):
    path = write(tmp_path)
    long = ["--steps", "5000"]  # no cell ends before the signal reaches it

    def stop():
        wait_for(lambda: begun(tmp_path, CELLS[0]))
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    status = main(["compare", path, "--jobs", "1", *long])
    thread.join()
    assert status == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert f"stopped by SIGTERM; continue with: dfpo compare {path} --steps 5000\n" in said
    assert multiprocessing.active_children() == []
    assert begun(tmp_path, CELLS[0]) and not (tmp_path / "out/cells" / CELLS[1]).exists()


def test_a_failing_or_killed_cell_costs_one_cell_and_is_tried_again(tmp_path, whole, capsys):
    path = write(tmp_path)
    blocked = tmp_path / "out/cells" / CELLS[0]
    blocked.parent.mkdir(parents=True)
    blocked.write_text("in the way")

    def kill():
        wait_for(lambda: begun(tmp_path, CELLS[1]))
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    status = main(["compare", path, "--jobs", "1", "--steps", str(STEPS)])
    thread.join()
    assert status == 1
    captured = capsys.readouterr()
    assert "2 of 4 cells failed, the first suite flip=0.5 ppo seed 3: exit status 2" in captured.err
    assert f"name: {blocked} exists already" in captured.err
    assert f"dfpo compare {path} --steps {STEPS} tries them again" in captured.err
    assert "dfpo seed 3: failed: killed by SIGKILL" in captured.out
    assert results(tmp_path) == results(whole)[2:], "the others go on"
    assert "| dfpo " in (tmp_path / "out/table.md").read_text(), "what is done is reported"
    blocked.unlink()
    assert main(["compare", path, "--seeds", "1"]) == 0
    assert results(tmp_path) == results(whole)[:2]


def test_a_begun_cell_keeps_its_settings(whole, capsys):
    assert main(["compare", write(whole), "--steps", "7"]) == 2
    said = capsys.readouterr().err
    assert "was begun with other settings (steps)" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arm": []}, ["arm", "did you mean arms?"]),
        ({"arms": ["pppo"]}, ["arm pppo", "did you mean ppo?"]),
        ({"arms": []}, ["arms", "at least one"]),
        ({"arms": {"a/b": {}}}, ["arms", "'a/b'"]),
        ({"arms": {"ppo": {"policy.clp": 1}}}, ["arm ppo", "policy.clp", "mean policy.clip?"]),
        ({"arms": {"ppo": {"seed": 1}}}, ["arms.ppo", "seed", "given by the grid"]),
        ({"noises": ["flip=2"]}, ["noise flip=2", "out of range"]),
        ({"noises": "flip=0.1"}, ["noises", "'flip=0.1'", "list"]),
        ({"noises": {"x": {"policy.clip": 0.1}}, "arms": {"ppo": {"policy": {"clip": 0.3}}}},
         ["policy.clip", "another axis"]),
        ({"seeds": [1, 1]}, ["seeds", "[1, 1]"]),
        ({"seeds": 0}, ["seeds", "0"]),
        ({"baseline": "grppo"}, ["baseline", "'grppo'", "ppo, dfpo"]),
        ({"baseline": ["ppo"]}, ["baseline", "['ppo']", "ppo, dfpo"]),
        ({"arms": {"mine": {"algorithm": ["ppo"]}}}, ["arm mine", "algorithm", "['ppo']"]),
        ({"domains": ["suit"]}, ["suit", "task"]),
        ({"base": {"model": "no/such/model"}}, ["model", "no/such/model"]),
        ({"base": {"steps": -1}}, ["steps", "-1"]),
        ({"tuned": "nowhere.yaml"}, ["tuned", "nowhere.yaml", "dfpo tune"]),
        ({"output": 3}, ["output", "3", "path"]),
    ],
)  # fmt: skip
def test_a_bad_recipe_is_one_line_before_any_work(tmp_path, capsys, changes, words):
    assert main(["compare", write(tmp_path, **changes)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for word in words:
        assert word in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({"domains": ["suite"]}, ["--task", "hard"], ["task", "domain suite"]),
        ({"arms": {"ppo": {}, "averse": {"algorithm": "dfpo", "risk": "cvar-lower"}}},
         ["--risk", "neutral"], ["risk", "arm averse"]),
        ({"noises": {"late": {"noise": "flip=0.1", "policy.clip": 0.1}}},
         ["--policy.clip", "0.2"], ["policy.clip", "noise late"]),
    ],
)  # fmt: skip
def test_a_flag_that_an_axis_sets_is_refused(tmp_path, capsys, changes, flags, words):
    assert main(["compare", write(tmp_path, **changes), *flags]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "as a flag" in said
    assert said.startswith(f"dfpo compare: error: {words[0]}: ") and words[1] in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("base", "flags", "name"),
    [
        ({}, {}, "suite"),
        ({"task": "hard"}, {}, "hard"),
        ({"task": "hard"}, {"task": "suite"}, "suite"),
        ({}, {"data": "here/mine.jsonl", "reward": "score.py:reward"}, "mine"),
    ],
)
def test_the_only_domain_is_called_by_what_runs(base, flags, name):
    tree = {"output": "out", "arms": ["ppo"], "seeds": 1, "base": base}
    (cell,) = grid(parse_recipe(tree, report.Path(), flags), {})
    assert cell.domain == name


@pytest.mark.parametrize("words", [[], ["a.yaml", "--quick"], ["absent.yaml"]])
def test_wrong_commands(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words]) == 2
    assert "recipe" in capsys.readouterr().err


def test_the_shipped_recipes_are_right():
    from dfpo.compare import QUICK, read_tuned

    folder = report.Path(__file__).parents[2] / "recipes"
    found = sorted(folder.glob("compare*.yaml"))
    assert found
    for path in found:
        if not path.stem.endswith("tuned"):
            recipe = load_recipe(path, {})
            assert grid(
                recipe, read_tuned(recipe) if recipe.tuned and recipe.tuned.exists() else {}
            )
    assert len(grid(parse_recipe(QUICK, folder, {}), {})) == 12


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
    levels, differences, training, benchmarks = report.tables(made_up(), "ppo", report.MARKDOWN)
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
    text = report.latex(report.tables(made_up(), "ppo", report.LATEX), "dfpo compare x_y.yaml")
    assert text.startswith("% dfpo compare")
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 4
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
    levels, differences, *_ = report.tables(alone, "ppo", report.MARKDOWN)
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
    differences = report.tables(found, "ppo", report.MARKDOWN)[1]
    assert len(differences.rows) == 5
    assert "3 differences have intervals, of which\n0.2" in differences.text


def test_arms_on_another_budget_are_named_above_the_differences():
    found = made_up()
    for r in found:
        if (r["arm"], r["noise"]) == ("new", "flip=0.3"):
            r["policy_updates"] += 2
    differences = report.tables(found, "ppo", report.MARKDOWN)[1]
    assert differences.text.endswith("\n\nNot on the budget of ppo: new (policy updates).")


def test_every_domain_has_its_first_policy_and_its_prompts():
    found = made_up()
    for r in made_up():
        r["domain"] = "own"
        r["benchmarks"] = {"c/train": {"prompts": 7, "before": 0.2, "after": 0.3}}
        found.append(r)
    levels, _, _, benchmarks = report.tables(found, "ppo", report.MARKDOWN)
    assert benchmarks.rows[:2] == [
        ["suite", "", "first policy", "0.500", "0.400", "–"],
        ["own", "", "first policy", "–", "–", "0.200"],
    ]
    assert benchmarks.text.endswith("Prompts of suite: a_b/id 9, a_b/ood 9; own: c/train 7.")
    assert "on held-out prompts or, in /train, training prompts (no others" in levels.text
    alone = report.tables(found[len(found) // 2 :], "ppo", report.MARKDOWN)[0]
    assert "on training prompts (no others were given) with clean" in alone.text
    assert "held-out" not in alone.text


def test_cells_of_several_versions_are_counted(tmp_path):
    found = made_up()
    found[0]["version"] = "0.1.0+xyz"
    report.write_report(tmp_path, found, "ppo", "dfpo compare")
    said = "more than one version of the code: 11 of dfpo 0.1.0+abc, 1 of dfpo 0.1.0+xyz."
    for name in ("table.md", "table.tex"):
        assert said in (tmp_path / name).read_text().split("## Levels")[0]
    assert report.mixed_versions(found[1:]) == ""


def test_a_finished_grid_of_several_versions_says_so_on_stderr(whole, tmp_path, capsys):
    shutil.copytree(whole / "out", tmp_path / "out")
    path = tmp_path / "out/cells" / f"{CELLS[0]}.result.json"
    write_json(path, json.loads(path.read_text()) | {"version": "0.0.1+old"})
    assert main(["compare", write(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert (
        "dfpo compare: The 4 runs are of more than one version of the code: 1 of dfpo 0.0" in said
    )


def test_a_broken_seed_takes_the_bold_away(tmp_path):
    """Without noise, new is ahead by 2, 3 and 4 points; its last seed ended at nothing finite."""
    found = made_up()
    broken = next(r for r in found if (r["noise"], r["arm"], r["seed"]) == ("none", "new", 2))
    broken["after"] |= {"id": math.nan, "all": math.nan}
    write_json(tmp_path / "x.json", broken)
    assert "NaN" not in (tmp_path / "x.json").read_text()
    broken |= json.loads((tmp_path / "x.json").read_text())
    levels, differences, *_ = report.tables(found, "ppo", report.MARKDOWN)
    assert levels.rows[1][4] == "not finite"
    assert differences.rows[0][3:] == ["ID AVG", "not finite", "–", "–", "2/3"]
    assert differences.rows[1][4] == "**-10.0**", "OOD AVG is finite"
    compare_plots.plot_levels(found)
    compare_plots.plot_differences(found, "ppo")
    assert board.scores(broken)[0] == "id not finite"
    assert board.mean([0.5, None]) == "not finite" and board.mean([]) == ""


def test_a_grid_without_evaluation_has_the_other_tables(tmp_path):
    path = write(tmp_path, seeds=[3])
    assert main(["compare", path, "--eval.prompts", "0", "--steps", "1", "--jobs", "2"]) == 0
    text = (tmp_path / "out/table.md").read_text()
    assert re.findall("^## (.*)", text, re.M) == ["Levels", "Training"]
    assert [path.name for path in (tmp_path / "out/plots").iterdir()] == ["learning_curves.png"]


def test_a_domain_may_have_no_out_of_domain_benchmark(tmp_path):
    found = made_up()
    for r in made_up():
        r["domain"] = "narrow"
        r["before"], r["after"] = (
            {k: t[k] for k in ("id", "all")} for t in (r["before"], r["after"])
        )
        del r["benchmarks"]["a_b/ood"]
        found.append(r)
    report.write_report(tmp_path, found, "ppo", "dfpo compare")
    assert (tmp_path / "plots/levels.png").is_file()
    shown = [ax.axison for ax in compare_plots.plot_levels(found).axes]
    assert shown == [True, True, True, True, False, True]


def test_plots_are_written(whole):
    names = {path.name for path in (whole / "out/plots").iterdir()}
    assert names == {"learning_curves.png", "levels.png", "differences.png"}


def test_curves_are_mean_and_range_over_seeds():
    key = ("suite", "none", "ppo")
    values = compare_plots.stack([[0.2] * 4, [0.6] * 4])
    ax = compare_plots.plot_curves({key: values}).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.4] * 4)
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (0.2, 0.6)


def test_levels_are_means_against_noise():
    axes = compare_plots.plot_levels(made_up()).axes
    assert [ax.get_title() for ax in axes] == ["ID AVG, suite", "OOD AVG, suite", "ALL AVG, suite"]
    ppo, new = (container.lines[0].get_ydata(orig=False) for container in axes[0].containers)
    np.testing.assert_allclose(ppo, [0.8, 0.4])
    np.testing.assert_allclose(new, [0.83, 1.63 / 3])
    assert [t.get_text() for t in axes[0].get_xticklabels()] == ["none", "flip=0.3"]


def test_forest_plot_shows_seeds_means_and_intervals():
    ax = compare_plots.plot_differences(made_up(), "ppo").axes[0]
    seeds, mean = ax.collections[0].get_offsets(), ax.collections[1].get_offsets()
    np.testing.assert_allclose(seeds[:, 0], [2.0, 3.0, 4.0])
    np.testing.assert_allclose(mean, [[3.0, 0.0]])
    student = ax.lines[0].get_xdata()
    np.testing.assert_allclose(student, [3 - 2.484, 3 + 2.484], atol=1e-2)
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        "new   suite none",
        "new   suite flip=0.3",
    ]


def test_time_left_is_from_measured_costs(tmp_path):
    cells = [
        Cell("suite", "none", arm, seed, {}, {}, 10, tmp_path / f"{arm}{seed}")
        for seed in range(2)
        for arm in ("a", "b")
    ]
    work = pool.Work(cells, jobs=1, waiting=pool.deque(cells))
    assert pool.seconds_left(work) is None
    # A cell of a took 20 s: 2 s a step. Of b nothing is known, so it counts the same.
    work.waiting.popleft()
    work.seconds, work.steps = {"a": 20.0}, {"a": 10}
    assert pool.seconds_left(work) == pytest.approx(60.0)
    # One of b took 40 s: what is left is one of each.
    work.waiting.popleft()
    work.seconds["b"], work.steps["b"] = 40.0, 10
    assert pool.seconds_left(work) == pytest.approx(60.0)
    work.jobs = 2
    assert pool.seconds_left(work) == pytest.approx(30.0)
    assert "30 s left" in board.table(work) and "0 of 4 cells" in board.table(work)


def test_a_terminal_shows_one_table_drawn_over(tmp_path, monkeypatch, capsys):
    cells = [Cell("suite", "none", f"arm{i}", 0, {}, {}, 10, tmp_path / f"{i}") for i in range(30)]
    work = pool.Work(cells, jobs=1, running={"a process": cells[7]})
    work.started[cells[7]] = (time.monotonic(), 0)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: (80, 12))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    show = board.make_board()
    show(work, None)
    first = capsys.readouterr().out
    # Thirty arms do not fit into twelve lines: the one at work, its two headings and the summary.
    assert [line[:5] for line in first.splitlines()] == ["domai", "-----", "suite", "0 of "]
    assert "arm7" in first and "seed 0: 0/10" in first
    show(work, None)
    assert capsys.readouterr().out.startswith("\x1b[4A\x1b[J")


def test_names_may_not_collide(tmp_path):
    with pytest.raises(ConfigError, match="twice"):
        load_recipe(report.Path(write(tmp_path, arms=["ppo", "ppo"])), {})
