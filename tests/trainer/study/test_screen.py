"""What a comparison shows while it runs."""

import time

import pytest

from dfpo.study import screen, workers
from dfpo.study.recipe import Cell


def test_time_left_is_from_measured_costs(tmp_path):
    cells = [
        Cell("suite", "none", arm, seed, {}, {}, 10, tmp_path / f"{arm}{seed}")
        for seed in range(2)
        for arm in ("a", "b")
    ]
    work = workers.Work(cells, jobs=1, waiting=workers.deque(cells))
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
    assert "30 s left" in screen.table(work) and "0 of 4 cells" in screen.table(work)


def test_a_terminal_shows_one_table_drawn_over(tmp_path, monkeypatch, capsys):
    cells = [Cell("suite", "none", f"arm{i}", 0, {}, {}, 10, tmp_path / f"{i}") for i in range(30)]
    work = workers.Work(cells, jobs=1, running={"a process": cells[7]})
    work.started[cells[7]] = (time.monotonic(), 0)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: (80, 12))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    show = screen.make_board()
    show(work, None)
    first = capsys.readouterr().out
    # Thirty arms do not fit into twelve lines: the one at work, its two headings and the summary.
    assert [line[:5] for line in first.splitlines()] == ["domai", "-----", "suite", "0 of "]
    assert "arm7" in first and "seed 0: 0/10" in first
    show(work, None)
    assert capsys.readouterr().out.startswith("\x1b[4A\x1b[J")
