"""Reward functions of strangers: what each does costs its batch, and nothing else."""

import asyncio
import contextlib
import json
import math
import os
import signal
import sys
import threading
import time

import pytest
import torch

from dfpo.__main__ import main
from dfpo.config import ConfigError
from dfpo.rewards import calls
from dfpo.rewards.functions import Reward, RewardError, number
from dfpo.rewards.sources import load_function

ROWS = [{"prompt": f"p{i}", "tags": ["a"], "n": i} for i in range(4)]
TEXTS, IDS = ["0", "x", "2", ""], [[1], [2, 3], [4], [5]]
GOOD = [1.0, 2.0, 3.0, 4.0]


def score(*functions, seconds=0.0, step=0, strict=False):
    names = tuple(f"f{i}" for i in range(len(functions)))
    reward = Reward(names, functions, (1.0,) * len(functions), None, seconds, steps=10)
    return reward(ROWS, TEXTS, IDS, step=step, strict=strict)


def leave(how):
    def function(**_):
        how()
        return GOOD

    return function


def recurse():
    recurse()


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (lambda: sys.exit(3), "SystemExit: 3"),
        (lambda: os._exit(0), "os._exit(0)"),
        (interrupt, "KeyboardInterrupt"),
        (recurse, "RecursionError"),
        (lambda: asyncio.run(asyncio.sleep(-1, None)) or 1 / 0, "ZeroDivisionError"),
    ],
)
def test_what_ends_a_process_fails_a_batch(how, words):
    scored = score(leave(how))
    assert scored.invalid == 4 and scored.values.isnan().all()
    assert words in scored.problem and "\n" not in scored.problem
    with pytest.raises(RewardError, match="f0 raised"):
        score(leave(how), strict=True)


def hang():
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


def test_what_never_returns_is_ended_once_for_the_batch():
    started = time.monotonic()
    scored = score(leave(hang), seconds=0.3)
    assert time.monotonic() - started < 2, "not once for each answer"
    assert scored.invalid == 4
    assert "did not return within 0.3 seconds; --reward.timeout" in scored.problem
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_run_is_as_it_was_afterwards(tmp_path, capsys):
    folder, streams = os.getcwd(), (sys.stdout, sys.stderr)
    rows = [dict(row, tags=list(row["tags"])) for row in ROWS]

    def rude(prompts, completions, tags, **_):
        os.chdir(tmp_path)
        prompts.clear()
        tags[0].append("changed")
        print("x" * 10**6)
        sys.stdout.close()
        sys.stderr = None
        threading.Thread(target=time.sleep, args=(0.5,), daemon=True).start()
        return GOOD

    assert score(rude).values.tolist() == GOOD
    assert os.getcwd() == folder and (sys.stdout, sys.stderr) == streams
    assert rows == ROWS
    print("still open")
    assert "still open" in capsys.readouterr().out


def test_a_child_that_comes_back_ends(tmp_path):
    """It would go on training beside its parent."""
    mark = tmp_path / "children"

    def forks(**_):
        if os.fork() == 0:
            mark.write_text("was here")
        return GOOD

    assert score(forks).values.tolist() == GOOD
    os.wait()
    assert mark.read_text() == "was here"


def test_awaited_functions_run_at_once(monkeypatch):
    def slow(values):
        async def function(**_):
            await asyncio.sleep(0.3)
            return values

        return function

    started = time.monotonic()
    scored = score(slow(GOOD), slow(GOOD), slow(GOOD))
    assert time.monotonic() - started < 0.8
    assert scored.values.tolist() == [3 * x for x in GOOD]

    async def late(**_):
        await asyncio.sleep(60)

    assert "did not return within 0.2" in score(late, seconds=0.2).problem

    async def blocks(**_):
        time.sleep(5)

    monkeypatch.setattr(calls, "GRACE", 0.1)
    started = time.monotonic()
    assert "did not return within 0.2" in score(blocks, seconds=0.2).problem
    assert time.monotonic() - started < 3

    async def fails(**_):
        raise ValueError("no")

    assert "ValueError: no" in score(fails).problem


def test_trls_keywords_reach_who_takes_them():
    seen = {}

    def with_all(trainer_state, log_metric, log_extra, **_):
        seen["step"] = trainer_state.global_step
        seen["share"] = trainer_state.global_step / trainer_state.max_steps
        log_metric("length", 2.0)
        log_metric("length", 4.0)
        log_extra("note", ["a"] * 4)
        log_extra("depth", [1, 2, 3, 6])
        return GOOD

    def without(prompts, completions, completion_ids, tags, n):
        return GOOD

    scored = score(with_all, without, step=7)
    assert seen == {"step": 7, "share": 0.7}
    assert scored.logged == {"length": 3.0, "depth": 3.0}
    assert scored.invalid == 0


REWARDS = """
async def polite(completions, log_metric, trainer_state, **columns):
    log_metric("step", trainer_state.global_step)
    return [1.0] * len(completions)

def short(completions, log_extra, **columns):
    log_extra("words", [len(c.split()) for c in completions])
    return [None] + [-0.01 * len(c) for c in completions[1:]]
"""


def test_what_functions_log_reaches_the_metrics(tmp_path):
    (tmp_path / "score.py").write_text(REWARDS)
    words = [f"{tmp_path / 'score.py'}:{name}" for name in ("polite", "short")]
    small = ["--steps", "2", "--algorithm", "grpo", "--eval.prompts", "0", "--plots", "false"]
    small += ["--rollout.prompts", "2"]
    small += ["--rollout.samples", "2", "--runs-dir", str(tmp_path), "--name", "run"]
    assert main(["train", "--reward", *words, "--reward.weights", "1,2", *small]) == 0

    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    for step, row in enumerate(map(json.loads, lines)):
        assert row["reward/log/step"] == step and row["reward/log/words"] > 0
        # The sum with weights, of which the first answer lacks the second part.
        parts = row["reward/of/polite"] + 2 * row["reward/of/short"] * 3 / 4
        assert row["reward/clean"] == pytest.approx(parts)


@pytest.mark.parametrize("value", [1e60, -1e60, 10**400, math.nan, math.inf])
def test_what_float32_cannot_hold_is_no_number(value):
    with pytest.raises(RewardError, match="must return finite numbers"):
        number(value)
    assert number(3e38) == 3e38
    assert torch.tensor(number(3e38)).isfinite()


@pytest.mark.parametrize("line", ["raise SystemExit(1)", "import os; os._exit(3)", "1 / 0", "x ="])
def test_a_file_that_fails_at_import_is_one_line(tmp_path, line):
    file = tmp_path / "mine.py"
    file.write_text(f"{line}\ndef reward(**_): pass\n")
    with pytest.raises(ConfigError, match="cannot be imported") as error:
        load_function(f"{file}:reward", torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_a_reward_of_nothing_is_said_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def none(prompts, **_): return [None] * len(prompts)\n")
    assert main(["train", "--reward", "mine.py:none", "--steps", "2"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "none scores none of 16 answers" in said
    assert not (tmp_path / "runs").exists()
