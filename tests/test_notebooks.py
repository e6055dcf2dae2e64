"""The notebooks of examples/ run from top to bottom, in fewer steps than they show."""

import json
import re
from pathlib import Path

import matplotlib.pyplot
import pytest

FOLDER = Path(__file__).parents[1] / "examples"
NAMES = ("first_run", "what_the_critic_thinks")


def code(name):
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matplotlib.pyplot, "close", lambda *figures: None)
    names = {}
    for cell in code(name):
        exec(re.sub(r"steps=\d+", "steps=3", cell), names)  # noqa: S102
    assert len(names["run"].metrics) == 3
    assert (names["run"].directory / "policy/config.json").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_its_pictures_and_numbers_are_kept(name):
    """Whoever reads a notebook where it is shown sees what it gives."""
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    shown = [kind for cell in cells for o in cell.get("outputs", []) for kind in o.get("data", {})]
    assert "image/png" in shown and "text/html" in shown
