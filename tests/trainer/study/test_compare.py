"""A grid of four small runs: its results, how it stops and goes on, what is wrong in a recipe."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from statistics import fmean

import pytest
from small_grids import STEPS, write

from dfpo.__main__ import main
from dfpo.run.records import write_json
from dfpo.study import workers
from dfpo.study.compare import QUICK
from dfpo.study.recipe import grid, parse_recipe

CELLS = [f"suite/flip=0.5/{arm}/seed{seed}" for seed in (3, 4) for arm in ("ppo", "dfpo")]


def results(folder):
    """Without what depends on the machine, and on what is edited while tests run."""
    lines = (folder / "out/results.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    for result in found:
        assert result.pop("cost")["cpu_seconds"] > 0
        assert re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{8}", result.pop("version"))
        # As text where a flag gave it.
        assert int(result["base"].pop("steps")) == STEPS
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
    assert ours["kl"] == steps[-1]["kl"], "the last tenth of four steps is the last"
    assert ours["tokens"] == sum(m["tokens"] for m in steps)
    # Four steps of three prompts twice, two of them warm the critic up.
    assert (ours["answers"], ours["policy_updates"]) == (24, 2)
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


@pytest.mark.long
def test_a_killed_grid_goes_on_without_repeating(tmp_path, whole):
    words = ["compare", write(tmp_path), "--jobs", "1"]
    # Its own process, with the trainer loaded already.
    process = workers.server().Process(target=main, args=(words,))
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


def test_rows_of_another_place_are_as_good_as_cells(whole, tmp_path, capsys):
    """Committed rows alone make the tables and plots again: nothing is trained."""
    rows = whole / "out/results.jsonl"
    assert main(["compare", write(tmp_path), "--rows", str(rows)]) == 0
    assert "4 cells, 4 done before" in capsys.readouterr().out
    assert not (tmp_path / "out/cells" / CELLS[0]).exists()
    assert (tmp_path / "out/results.jsonl").read_bytes() == rows.read_bytes()
    ours, theirs = ((f / "out/table.md").read_text() for f in (tmp_path, whole))
    assert ours.split("\n")[3:] == theirs.split("\n")[3:], "all but the command"
    for name in ("learning_curves.png", "differences.png"):
        drawn = (tmp_path / "out/plots" / name).read_bytes()
        assert drawn == (whole / "out/plots" / name).read_bytes()


def test_rows_of_other_settings_are_refused(whole, tmp_path, capsys):
    rows = whole / "out/results.jsonl"
    assert main(["compare", write(tmp_path), "--rows", str(rows), "--steps", "7"]) == 2
    said = capsys.readouterr().err
    assert "suite flip=0.5 ppo seed 3 of" in said and "other settings (steps)" in said
    wrong = tmp_path / "rows.jsonl"
    wrong.write_text(rows.read_text() + "[]\n")
    assert main(["compare", write(tmp_path), "--rows", str(wrong)]) == 2
    assert f"rows: line 5 of {wrong} is no result of a cell\n" in capsys.readouterr().err
    assert main(["compare", write(tmp_path), "--rows", str(tmp_path / "absent")]) == 2
    assert "rows: cannot read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "nothing was begun"


@pytest.mark.parametrize("words", [[], ["a.yaml", "--quick"], ["absent.yaml"]])
def test_wrong_commands(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *words]) == 2
    assert "recipe" in capsys.readouterr().err


def test_the_quick_grid_has_twelve_cells():
    assert len(grid(parse_recipe(QUICK, Path(), {}), {})) == 12


def test_a_finished_grid_of_several_versions_says_so_on_stderr(whole, tmp_path, capsys):
    shutil.copytree(whole / "out", tmp_path / "out")
    path = tmp_path / "out/cells" / f"{CELLS[0]}.result.json"
    write_json(path, json.loads(path.read_text()) | {"version": "0.0.1+old"})
    assert main(["compare", write(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert (
        "dfpo compare: The 4 runs are of more than one version of the code: 1 of dfpo 0.0" in said
    )


def test_a_grid_without_evaluation_has_the_other_tables(tmp_path):
    path = write(tmp_path, seeds=[3])
    assert main(["compare", path, "--eval.prompts", "0", "--steps", "1", "--jobs", "2"]) == 0
    text = (tmp_path / "out/table.md").read_text()
    assert re.findall("^## (.*)", text, re.M) == ["Levels", "Training"]
    assert [path.name for path in (tmp_path / "out/plots").iterdir()] == ["learning_curves.png"]


def test_plots_are_written(whole):
    names = {path.name for path in (whole / "out/plots").iterdir()}
    assert names == {"learning_curves.png", "levels.png", "differences.png"}
