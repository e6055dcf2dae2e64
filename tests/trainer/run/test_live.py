"""What a run says where: curves in a notebook, no colours, nothing at all."""

import io
import re
import sys
from types import SimpleNamespace

import matplotlib.pyplot
import pytest

from dfpo.__main__ import main
from dfpo.run import bars, live

SMALL = [
    "train", "--steps", "3", "--algorithm", "grpo", "--eval.prompts", "2",
    "--rollout.prompts", "2", "--rollout.samples", "2", "--rollout.max-new-tokens", "12",
]  # fmt: skip


@pytest.fixture
def notebook(monkeypatch):
    """IPython as a kernel has it; what is displayed, in order."""
    shown = []
    handle = SimpleNamespace(update=lambda figure: shown.append(("again", figure)))

    def display(figure, display_id):
        shown.append(("first", figure))
        return handle

    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(
        sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, version_info=(9,))
    )
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr(live, "SECONDS", 0.0)
    # Which would ask the stand-in for IPython's events.
    monkeypatch.setattr(matplotlib.pyplot, "install_repl_displayhook", lambda: None)
    return shown


def test_a_notebook_gets_one_output_that_is_replaced(notebook, tmp_path):
    assert main([*SMALL, "--runs-dir", str(tmp_path)]) == 0
    assert [how for how, _ in notebook] == ["first", "again", "again"]
    steps = [len(figure.axes[0].lines[0].get_xdata()) for _, figure in notebook]
    assert steps == [1, 2, 3]


def test_without_plots_or_in_a_terminal_there_is_none(notebook, tmp_path, monkeypatch):
    assert main([*SMALL, "--runs-dir", str(tmp_path), "--plots", "false"]) == 0
    assert notebook == []
    terminal = SimpleNamespace(get_ipython=lambda: SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython", terminal)
    assert not live.in_notebook()


def test_a_terminal_gets_no_colours(tmp_path, monkeypatch):
    """Whatever NO_COLOR says: moving the cursor is all that a bar needs."""
    streams = io.StringIO(), io.StringIO()
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        stream.isatty = lambda: True
        monkeypatch.setattr(sys, name, stream)
    assert main([*SMALL, "--runs-dir", str(tmp_path), "--plots", "false"]) == 0
    said = "".join(stream.getvalue() for stream in streams)
    assert "train: 100%" in said and not re.search(r"\x1b\[[\d;]*m", said)


def test_a_terminal_that_cannot_draw_gets_lines(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "dumb")
    assert type(bars.bar(range(3))) is bars.Lines
