"""dfpo critic: its table, its files, what it refuses."""

import json
import shutil

import pytest

from dfpo.__main__ import main
from dfpo.study.probe.command import labels, summarise_groups
from dfpo.study.probe.replays import replay
from dfpo.study.probe.scores import SCORES


def test_critics_of_one_policy_look_on_at_the_same_plays(run, tmp_path, monkeypatch):
    other, calls = tmp_path / "other", []
    shutil.copytree(run, other)

    def counted(*words):
        calls.append(words)
        return replay(*words)

    monkeypatch.setattr("dfpo.study.probe.command.replay", counted)
    assert main(["critic", str(run), str(other), "--answers", "1", "--plays", "2"]) == 0
    assert len(calls) == 1


def test_the_command(run, tmp_path, capsys):
    words = ["critic", str(run), "--answers", "1", "--plays", "2"]
    assert main([*words, "--plot", str(tmp_path / "all.png"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    report = printed[str(run)]
    assert printed["groups"] == {}
    assert report == json.loads((run / "critic.json").read_text())
    assert set(report["scores"]) == set(SCORES) and report["answers"] == 3
    for file in (
        tmp_path / "all.png",
        *(run / "plots" / f"critic_{n}.png" for n in ("values", "answers")),
    ):
        assert file.stat().st_size > 10_000


def test_runs_of_one_name_and_algorithm_stand_beside_each_other_and_their_mean(
    run, tmp_path, capsys
):
    runs = [tmp_path / name / "seed0" for name in "ab"]
    for path in runs:
        shutil.copytree(run, path)
    words = ["critic", *map(str, runs), str(runs[0]), "--answers", "1", "--plays", "2"]
    assert main([*words, "--plot", str(tmp_path / "all.png")]) == 0
    table = capsys.readouterr().out.splitlines()
    columns = table[0].partition("]")[2]
    assert " ".join(columns.split()) == "a/seed0 b/seed0 dfpo, flip=0.25: mean of 2"
    assert table[2].count("[") == 3, "the run that was given twice is one"
    assert (tmp_path / "all.png").stat().st_size > 10_000


def test_labels_are_the_shortest_ends_that_differ():
    assert labels(["runs/a", "runs/b"]) == ["a", "b"]
    runs = [f"cells/suite/none/{arm}/seed{seed}" for arm in ("ppo", "dfpo") for seed in (0, 1)]
    assert labels(runs) == ["ppo/seed0", "ppo/seed1", "dfpo/seed0", "dfpo/seed1"]


def test_means_of_runs_by_hand():
    def report(noise, value):
        return {"algorithm": "ppo", "noise": noise, "scores": dict.fromkeys(SCORES, value)}

    none = (None, None, None)
    found = {
        "a": report("none", (1.0, 0.0, 2.0)), "b": report("none", (3.0, 2.0, 4.0)),
        "c": report("flip=0.3", (1.0, 0.0, 2.0)), "d": report("missing=1", none),
        "e": report("missing=1", none),
    }  # fmt: skip
    means = summarise_groups(found)
    assert {name: group["runs"] for name, group in means.items()} == {
        "ppo, none": ["a", "b"], "ppo, missing=1": ["d", "e"],
    }  # fmt: skip
    # t_1(.975) = 12.706, s = sqrt(2): 12.706 sqrt(2) / sqrt(2)
    for score in means["ppo, none"]["scores"].values():
        assert score == pytest.approx((2.0, 2 - 12.706, 2 + 12.706), abs=1e-3)
    assert means["ppo, missing=1"]["scores"]["bias"] == none


@pytest.mark.parametrize(
    "words, said",
    [
        (["--plot", "none/here.png"], "plot: is none/here.png, but none is no directory"),
        (["--plot", "all.doc"], "plot: is all.doc, must end in one of"),
        (["--plot", "all"], "plot: is all, must end in one of"),
        (["--plays", "1"], "plays: is 1, must be at least 2"),
    ],
)
def test_wrong_words_are_named_before_the_first_probe(
    run, tmp_path, monkeypatch, capsys, words, said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dfpo.study.probe.command.probe", None)
    assert main(["critic", str(run), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("algorithm, said", [("grpo", "has a critic"), (None, "holds no config")])
def test_what_has_no_critic(tmp_path, capsys, algorithm, said):
    if algorithm:
        words = ["--steps", "0", "--eval.prompts", "1", "--runs-dir", str(tmp_path), "--name", "a"]
        assert main(["train", "--algorithm", algorithm, *words]) == 0
    else:
        (tmp_path / "a").mkdir()
    assert main(["critic", str(tmp_path / "a")]) == 2
    assert said in capsys.readouterr().err
