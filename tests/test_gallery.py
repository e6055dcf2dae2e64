"""The gallery's examples in a short form: each runs, and leaves a picture and a line."""

import importlib
import re
from pathlib import Path

import pytest

from dfpo.config.algorithms import ALGORITHMS
from dfpo.config.choices import ADVANTAGES

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples/gallery").glob("*.py"))
PAGE = (ROOT / "docs/gallery.md").read_text()
# What its last line says, and how many steps are enough to see it.
SAYS = {
    "own_algorithm": (2, r"dfpo-sure: last five steps 0\.\d+"),
    "pseudo_labels": (2, r"last five steps: told 0\.\d+, true 0\.\d+"),
    "risk_averse": (120, r"mean of the worst quarter: the safe door at last 0\.[6-9]\d"),
    "trl_critic": (2, r"right at first [01]\.\d+, at last [01]\.\d+"),
    "unknown_scale": (2, r"score of the first step -\d\d\.\d, of the last -\d\d\.\d"),
}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_runs(script, tmp_path, monkeypatch, capsys):
    if script.stem == "trl_critic":
        pytest.importorskip("trl")
    steps, said = SAYS[script.stem]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(script.parent)
    known = [set(ALGORITHMS), set(ADVANTAGES)]
    try:
        importlib.import_module(script.stem).main(steps, tmp_path / "picture.png")
    finally:
        for table, names in zip((ALGORITHMS, ADVANTAGES), known, strict=True):
            for name in set(table) - names:
                del table[name]
    assert re.fullmatch(said, capsys.readouterr().out.splitlines()[-1])
    assert (tmp_path / "picture.png").read_bytes()[:4] == b"\x89PNG"


def test_the_page_shows_each():
    assert set(SAYS) == {script.stem for script in SCRIPTS}
    for script in SCRIPTS:
        assert f"(../examples/gallery/{script.name})" in PAGE
        assert f"(gallery/{script.stem}.png)" in PAGE
