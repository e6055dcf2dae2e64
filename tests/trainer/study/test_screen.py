"""What a comparison shows while it runs."""

import os
import time

from dfpo.study import screen, workers
from dfpo.study.recipe import Cell


def test_a_terminal_shows_one_table_drawn_over(tmp_path, monkeypatch, capsys):
    cells = [Cell("suite", "none", f"arm{i}", 0, {}, {}, 10, tmp_path / f"{i}") for i in range(30)]
    work = workers.Work(cells, jobs=1, running={"a process": cells[7]})
    work.started[cells[7]] = (time.monotonic(), 0)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_: os.terminal_size((80, 12)))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    show = screen.make_board()
    show(work, None)
    first = capsys.readouterr().out
    # Thirty arms do not fit into twelve lines: the one at work, its two headings and the summary.
    assert [line[:5] for line in first.splitlines()] == ["domai", "-----", "suite", "0 of "]
    assert "arm7" in first and "seed 0: 0/10" in first
    show(work, None)
    assert capsys.readouterr().out.startswith("\x1b[4A\x1b[J")
