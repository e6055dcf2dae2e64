"""What is settled before cells run: which, with what settings, where. Cells that run:
test_compare.py."""

import json
import shlex
from pathlib import Path

import pytest
from small_grids import write

from dfpo.__main__ import build_parsers
from dfpo.config import ConfigError
from dfpo.study import grid
from dfpo.study.cell import write_settings
from dfpo.study.recipe import Cell, load_recipe


def make_cells(folder, **settings):
    return [
        Cell("suite", "none", arm, 3, {"algorithm": arm, "steps": 4} | settings, {}, 4,
             folder / "cells" / arm)
        for arm in ("ppo", "dfpo")
    ]  # fmt: skip


def test_a_recipe_is_narrowed(tmp_path):
    recipe = load_recipe(Path(write(tmp_path)), {})
    assert grid.narrow(recipe, None, None) == recipe
    narrow = grid.narrow(recipe, tmp_path / "else", 1)
    assert narrow.seeds == (3,) and narrow.output == tmp_path / "else"
    for wrong in (0, 3):
        with pytest.raises(ConfigError, match=f"seeds: is {wrong}, must be 1 to 2"):
            grid.narrow(recipe, None, wrong)


def test_the_command_that_goes_on_is_read_as_what_was_asked(tmp_path):
    flags = {"steps": "7", "reward.functions": ["a b.py:f", "judge"], "max_grad_norm": "0.5"}
    said = grid.command_line("compare", Path("a b.yaml"), Path("out"), 2, flags, where="ray")
    read = vars(build_parsers("compare")[0].parse_args(shlex.split(said)[1:]))
    own = {"command": "compare", "recipe": Path("a b.yaml"), "output": Path("out"), "seeds": 2}
    assert read == own | {"on": "ray", "quick": False, "jobs": None, "rows": None} | flags
    assert grid.command_line("compare", None, None, None, {}) == "dfpo compare --quick"


def test_a_begun_cell_is_held_to_its_settings(tmp_path):
    for each in make_cells(tmp_path):
        write_settings(each)
    grid.check_begun(make_cells(tmp_path))
    # Said in other words it is the same.
    grid.check_begun(make_cells(tmp_path, seed=0))
    with pytest.raises(ConfigError, match=r"ppo was begun with other settings \(policy.clip\)"):
        grid.check_begun(make_cells(tmp_path, **{"policy.clip": 0.3}))


def test_what_only_loading_finds_names_the_cell(tmp_path):
    with pytest.raises(ConfigError, match="^suite none ppo seed 3: model: .* holds no config.json"):
        grid.check_loads(make_cells(tmp_path, model=str(tmp_path)))


def test_results_are_those_of_finished_cells_in_the_grids_order(tmp_path):
    first, second = make_cells(tmp_path)
    assert grid.read_results([first, second]) == []
    second.run.parent.mkdir(parents=True)
    second.result.write_text(json.dumps({"arm": "dfpo"}))
    first.result.write_text(json.dumps({"arm": "ppo"}))
    assert [r["arm"] for r in grid.read_results([first, second])] == ["ppo", "dfpo"]


def test_one_comparison_at_a_time(tmp_path):
    at_work = pytest.raises(ConfigError, match="output: another comparison is at work in")
    with grid.locked(tmp_path / "out"), at_work, grid.locked(tmp_path / "out"):
        pytest.fail("two at once")
    with grid.locked(tmp_path / "out"):
        pass

    (tmp_path / "file").write_text("")
    no_directory = pytest.raises(ConfigError, match="output: cannot write .*: ")
    with no_directory, grid.locked(tmp_path / "file"):
        pytest.fail("a file is no directory")


def test_a_failed_cell_is_an_error_and_the_others_results_are_written(tmp_path, monkeypatch):
    first, second = make_cells(tmp_path / "out")

    def train(cells, jobs, proceed, show):
        assert (jobs, proceed) == (2, "continue with: dfpo compare x.yaml")
        assert all(cell.run.with_suffix(".yaml").is_file() for cell in cells)
        second.result.write_text(json.dumps({"arm": "dfpo"}))
        return {first: "exit status 2"}

    monkeypatch.setattr(grid, "run_cells", train)
    error = grid.run(tmp_path / "out", [first, second], 2, "dfpo compare x.yaml")
    assert str(error) == (
        "1 of 2 cells failed, the first suite none ppo seed 3: exit status 2\n"
        "dfpo compare x.yaml tries them again"
    )
    assert (tmp_path / "out/results.jsonl").read_text() == '{"arm": "dfpo"}\n'
