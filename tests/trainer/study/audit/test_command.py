"""An audit of a run: its files, its words, and who has none."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import dfpo
from dfpo.__main__ import main
from dfpo.study.audit.answers import Judged
from dfpo.study.audit.command import audit_answers, audit_report

SMALL = {
    "steps": 2, "critic.warmup_steps": 2, "critic.warmup_epochs": 1, "eval.prompts": 0,
    "eval.examples": 0, "plots": False, "device": "cpu", "critic.num_quantiles": 8,
}  # fmt: skip


def concise(completions, level, **columns):
    return [len(text) / 40 for text in completions]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="module")
def flipped(folder):
    return dfpo.train(runs_dir=str(folder), name="flipped", noise="flip=.3", **SMALL)


def test_a_run_s_audit(flipped, capsys):
    assert main(["audit", str(flipped.directory), "--answers", "60", "--show", "3"]) == 0
    said = capsys.readouterr().out
    for words in ("labels wrong", "math", "science", "knows too little", "known errors", "AUC"):
        assert words in said, words
    table = pq.read_table(flipped.directory / "audit.parquet")
    assert table.num_rows == 64, "whole steps of 16 prompts"
    assert np.all(np.diff(table["probability"].to_numpy()) >= 0)
    rows = table.to_pylist()
    wrong = np.mean([row["told"] != row["clean"] for row in rows])
    stored = json.loads((flipped.directory / "audit.json").read_text())
    assert stored["known_errors"]["share"] == pytest.approx(wrong)
    assert set(stored["groups"]) == {"all", "math", "science", "dialogue"}


def test_an_audit_in_python_is_the_same_each_time_and_by_any_column(folder):
    data = [{"prompt": f"{i} plus 2", "level": i % 2} for i in range(8)]
    run = dfpo.train(data=data, reward=concise, runs_dir=str(folder), name="own", **SMALL)
    first = dfpo.audit(run, answers=64, by="level", reward=concise)
    again = dfpo.audit(run.directory, answers=64, by="level", reward=concise)
    assert first.answers.equals(again.answers) and first.groups.keys() == {"all", "0", "1"}
    # Graded rewards have a spread and no labels; without injected noise nothing is known.
    assert first.groups["all"].spread[0] > 0 and np.isnan(first.groups["all"].flips[0])
    assert first.known_errors is None and "clean" not in first.answers.column_names
    assert "spread" in str(first)


def test_who_has_no_critic_has_no_audit(folder, capsys):
    dfpo.train(
        runs_dir=str(folder), name="grpo", algorithm="grpo", steps=0, plots=False,
        eval={"prompts": 0},
    )  # fmt: skip
    assert main(["audit", str(folder / "grpo")]) == 2
    assert "is of grpo, must be one that has a critic" in capsys.readouterr().err
    assert main(["audit", str(folder / "none")]) == 2


def test_each_group_is_judged_by_its_own_rates(tmp_path):
    """Errors in one group alone; the critic expects the truth of each."""
    rng = np.random.default_rng(0)
    right = rng.random(400) < 0.5
    groups = ["a"] * 200 + ["b"] * 200
    wrong = (rng.random(400) < 0.25) & (np.arange(400) >= 200)
    told = (right ^ wrong).astype(float)
    rate = np.where(np.arange(400) < 200, 0.0, 0.25)
    expected = np.where(right, 1 - rate, rate)[:, None] + np.linspace(-0.01, 0.01, 3)
    judged = Judged([str(i) for i in range(400)], [""] * 400, groups, told, right * 1.0, expected)
    found = audit_answers(tmp_path, judged, "domain")
    assert found.groups["a"].flips[0] == 0
    # Of 50 surest on each side: three standard errors are .13.
    assert found.groups["b"].flips[0] == pytest.approx(0.25, abs=0.13)
    assert found.known_errors["surprise"] > 0.99 and found.known_errors["residual"] > 0.99
    top = found.answers.slice(0, int(wrong.sum())).to_pylist()
    assert all(row["group"] == "b" and row["told"] != row["clean"] for row in top)
    assert "knows too little" not in audit_report(found, 0)
