"""Evaluations while training: metrics, the best policy, an early end, and going on."""

import json
import shutil

import pytest

from dfpo.__main__ import main
from dfpo.config import build_config
from dfpo.run import watch
from dfpo.run.progress import Progress

SMALL = [
    "train", "--eval.prompts", "3", "--eval.examples", "0", "--plots", "false",
    "--rollout.prompts", "2", "--rollout.samples", "2", "--critic.num-quantiles", "4",
    "--critic.warmup-steps", "1", "--policy.learning-rate", "1e-3", "--checkpoint-keep", "9",
]  # fmt: skip
EVERY = ["--eval.every", "2", "--eval.metric", "eval/ood"]


def rows(run, without=("perf/",)):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith(without)} for line in lines
    ]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    words = ["--runs-dir", str(folder), "--name", "watched", "--steps", "5", "--keep", "best"]
    assert main([*SMALL, *words, *EVERY, "--plots", "true"]) == 0
    return folder / "watched"


def test_evaluations_stand_in_the_metrics_of_their_step(watched):
    found = rows(watched)
    # Steps count from 0, so the second step is step 1; the last is always evaluated.
    assert [m["step"] for m in found if "eval/id" in m] == [1, 3, 4]
    last = found[-1]
    domains = [last[f"eval/{name}/ood_greedy"] for name in ("math", "science", "dialogue")]
    assert last["eval/ood_greedy"] == pytest.approx(sum(domains) / 3)
    summary = json.loads((watched / "summary.json").read_text())
    assert {k: last[f"eval/{k}"] for k in summary["after"]} == summary["after"]
    assert (watched / "plots/evaluations.png").stat().st_size > 1000


def test_training_is_the_same_with_and_without_it(watched, tmp_path):
    assert main([*SMALL, "--runs-dir", str(tmp_path), "--name", "plain", "--steps", "5"]) == 0
    assert rows(tmp_path / "plain") == rows(watched, ("perf/", "eval/"))
    weights = "policy/model.safetensors"
    assert (tmp_path / "plain" / weights).read_bytes() == (watched / weights).read_bytes()


def test_the_best_policy_is_the_one_that_scored_best(watched, capsys):
    score = json.loads((watched / "best/score.json").read_text())
    summary = json.loads((watched / "summary.json").read_text())
    assert summary["training"]["best"] == score
    values = {0: summary["before"]["ood"]}
    values |= {m["step"] + 1: m["eval/ood"] for m in rows(watched) if "eval/ood" in m}
    assert score["value"] == max(values.values()) == values[score["step"]]
    # Scored anew, the folder's policy gives that very number.
    capsys.readouterr()
    words = ["--eval.prompts", "3", "--json"]
    assert main(["eval", str(watched / "best/policy"), *words]) == 0
    assert json.loads(capsys.readouterr().out)["mean"]["ood"] == pytest.approx(score["value"])


def test_a_run_that_was_cut_judges_as_one_that_was_not(watched, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(watched, cut)
    (cut / "summary.json").unlink()
    for step in (3, 4, 5):
        shutil.rmtree(cut / f"checkpoints/step-00000{step}")
    assert main(["train", "--resume", str(cut)]) == 0
    assert rows(cut) == rows(watched)
    for name in ("best/score.json", "best/policy/model.safetensors", "best/critic.safetensors"):
        assert (cut / name).read_bytes() == (watched / name).read_bytes()


def test_patience_ends_a_run_that_gains_nothing(tmp_path, capsys):
    # Without a learning rate no evaluation is better than the first.
    words = ["--runs-dir", str(tmp_path), "--name", "flat", "--policy.learning-rate", "0"]
    words += ["--eval.every", "1", "--eval.patience", "2", "--steps", "6"]
    assert main([*SMALL, *words]) == 0
    said = capsys.readouterr().out
    assert "ended after 2 of 6 steps: 2 evaluations without eval/id above" in said
    assert len(rows(tmp_path / "flat")) == 2

    resume = ["train", "--resume", str(tmp_path / "flat")]
    assert main(resume) == 0
    assert "finished after 2 steps; --eval.patience 0 would go on" in capsys.readouterr().out
    assert len(rows(tmp_path / "flat")) == 2
    assert main([*resume, "--eval.patience", "3"]) == 0
    assert len(rows(tmp_path / "flat")) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep", "best"], "keep: is best, but eval.every = 0"),
        (["--eval.patience", "3"], "eval.patience: is 3, but eval.every = 0"),
        (["--eval.every", "2", "--eval.prompts", "0"], "eval.every: is 2, but eval.prompts = 0"),
        (["--eval.every", "2", "--eval.metric", "kl"], "eval.metric: is 'kl', must be one of"),
    ],
)
def test_what_cannot_be_judged_is_one_line(words, said, tmp_path, capsys):
    assert main([*SMALL, "--runs-dir", str(tmp_path / "runs"), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_equal_is_not_better():
    scores = {"math": {"id": dict.fromkeys(("sampled", "sampled_se", "greedy", "greedy_se"), 0.5)}}
    setup = type("Setup", (), {"config": build_config({"eval.every": 1, "eval.metric": "eval/id"})})
    progress = Progress(step=3)
    watch.judge(setup, progress, scores)
    progress.step = 4
    watch.judge(setup, progress, scores)
    assert (progress.best, progress.best_step, progress.stale) == (0.5, 3, 1)
