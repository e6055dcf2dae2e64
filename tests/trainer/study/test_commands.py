"""From the words of a command to a grid, with stand-ins for what then works."""

from pathlib import Path

import pytest

from dfpo.__main__ import main


@pytest.fixture
def asked(monkeypatch):
    """The arguments of each call of ``compare`` and ``tune``."""
    calls = []

    def ask(*words, **more):
        calls.append((*words, more))

    monkeypatch.setattr("dfpo.study.compare.compare", ask)
    monkeypatch.setattr("dfpo.study.tune.tune", ask)
    return calls


def test_a_grid_gets_its_own_words_and_its_cells_get_the_rest(asked):
    words = ["--jobs", "2", "--output", "out", "--steps", "7", "--policy.clip", "0.3"]
    assert main(["compare", "a.yaml", "--seeds", "1", *words]) == 0
    assert main(["tune", "a.yaml", *words]) == 0
    assert main(["compare", "--quick", "--on", "ray", "--rows", "a.jsonl"]) == 0
    flags = {"steps": "7", "policy.clip": "0.3"}
    assert asked == [
        (Path("a.yaml"), Path("out"), 1, 2, flags, {"where": "local", "rows": None}),
        (Path("a.yaml"), Path("out"), 2, flags, "local", {}),
        (None, None, None, None, {}, {"where": "ray", "rows": Path("a.jsonl")}),
    ]


@pytest.mark.parametrize("words", [["compare"], ["compare", "a.yaml", "--quick"], ["tune"]])
def test_a_grid_is_a_recipe_or_the_quick_one(asked, capsys, words):
    assert main(words) == 2
    assert "recipe: must be given" in capsys.readouterr().err and not asked


@pytest.mark.parametrize("flag", ["--seed", "--noise", "--algorithm"])
def test_what_the_grid_owns_is_no_flag(capsys, flag):
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "a.yaml", flag, "1"])
    assert f"{flag}: is no option" in capsys.readouterr().err
