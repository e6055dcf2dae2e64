"""Cells at work: what is left to do, what it will take, what a failed one said. Cells that run, are
killed and go on: test_compare.py."""

import json
import os
import signal
from collections import deque

import pytest

from dfpo.study import screen, workers
from dfpo.study.recipe import Cell


@pytest.fixture
def cells(tmp_path):
    return [
        Cell("suite", "none", arm, seed, {}, {}, 10, tmp_path / f"{arm}{seed}")
        for seed in range(2)
        for arm in ("a", "b")
    ]


def test_time_left_is_from_measured_costs(cells):
    work = workers.Work(cells, jobs=1, waiting=deque(cells))
    assert workers.seconds_left(work) is None
    # A cell of a took 20 s: 2 s a step. Of b nothing is known, so it counts the same.
    work.waiting.popleft()
    work.seconds, work.steps = {"a": 20.0}, {"a": 10}
    assert workers.seconds_left(work) == pytest.approx(60.0)
    # One of b took 40 s: what is left is one of each.
    work.waiting.popleft()
    work.seconds["b"], work.steps["b"] = 40.0, 10
    assert workers.seconds_left(work) == pytest.approx(60.0)
    work.jobs = 2
    assert workers.seconds_left(work) == pytest.approx(30.0)
    shown = screen.progress_table(work)
    assert "30 s left" in shown and "0 of 4 cells" in shown


def test_what_is_done_waits_no_more_and_its_cost_counts(cells):
    cells[0].result.write_text(json.dumps({"cost": {"seconds": 30.0}}))
    work = workers.begin_work(cells, 2)
    assert list(work.waiting) == cells[1:]
    assert (work.seconds, work.steps) == ({"a": 30.0}, {"a": 10})
    # Three cells of 10 steps, 3 s each, two at a time.
    assert workers.seconds_left(work) == pytest.approx(45.0)


def test_steps_are_lines_of_metrics(cells):
    assert workers.steps_done(cells[0]) == 0
    cells[0].run.mkdir()
    (cells[0].run / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n')
    assert workers.steps_done(cells[0]) == 2


def test_a_failed_cell_is_remembered_by_the_end_of_its_log(cells):
    log = cells[0].run.with_suffix(".log")
    log.write_text("".join(f"line {i}\n" for i in range(9)))
    assert workers.last_words(cells[0], 2) == (f"exit status 2, {log} ends\nline 6\nline 7\nline 8")
    assert workers.last_words(cells[0], -9) == "killed by SIGKILL"


def test_a_signal_is_heard_inside_and_the_old_answer_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with workers.listen() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before
