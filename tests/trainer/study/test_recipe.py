"""Recipes: what is wrong in one is one line, and those that ship."""

import math
from pathlib import Path

import pytest
from small_grids import write

from dfpo.__main__ import main
from dfpo.config import ConfigError, build_config, load_yaml
from dfpo.config.noise import parse_noise
from dfpo.config.rules import only_read
from dfpo.study.compare import read_tuned
from dfpo.study.recipe import grid, load_recipe, parse_recipe

FOLDER = Path(__file__).parents[3] / "recipes"
OF_RUNS = ("hard", "paper_8b", "smollm2")
OF_GRIDS = (
    "bounds", "chance", "compare", "cross_domain", "demo", "shared", "stability", "verdict",
)  # fmt: skip


def test_every_recipe_is_of_a_known_kind():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {
        *OF_RUNS,
        *OF_GRIDS,
        "compare.tuned",
        "verdict.tuned",
        "verl_value_flow",
    }


@pytest.mark.parametrize("name", OF_GRIDS)
def test_grids_are_of_settings_that_go_together(name):
    recipe = load_recipe(FOLDER / f"{name}.yaml", {})
    cells = grid(recipe, read_tuned(recipe))
    axes = (recipe.seeds, recipe.domains, recipe.noises, recipe.arms)
    assert len(cells) == math.prod(map(len, axes))


@pytest.mark.parametrize("name", OF_RUNS)
def test_recipes_are_configurations(name):
    path = FOLDER / f"{name}.yaml"
    settings = load_yaml(path)
    config = build_config(settings)
    assert config.task or config.data
    # The comparison gives its arms by flags over the recipe.
    own = {"algorithm": "ppo", "seed": 3}
    assert build_config(only_read(settings, own) | own).algorithm == "ppo"


def test_the_papers_recipe_votes_and_reads_its_folder():
    config = build_config(load_yaml(FOLDER / "paper_8b.yaml"))
    assert parse_noise(config.noise).vote == 16
    assert config.task == "benchmarks:data/paper"
    assert config.steps == 500


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arm": []}, ["arm", "did you mean arms?"]),
        ({"arms": ["pppo"]}, ["arm pppo", "did you mean ppo?"]),
        ({"arms": []}, ["arms", "at least one"]),
        ({"arms": {"a/b": {}}}, ["arms", "'a/b'"]),
        ({"arms": {"ppo": {"policy.clp": 1}}}, ["arm ppo", "policy.clp", "mean policy.clip?"]),
        ({"arms": {"ppo": {"seed": 1}}}, ["arms.ppo", "seed", "given by the grid"]),
        ({"noises": ["flip=2"]}, ["noise flip=2", "out of range"]),
        ({"noises": "flip=0.1"}, ["noises", "'flip=0.1'", "list"]),
        ({"noises": {"x": {"policy.clip": 0.1}}, "arms": {"ppo": {"policy": {"clip": 0.3}}}},
         ["policy.clip", "another axis"]),
        ({"seeds": [1, 1]}, ["seeds", "[1, 1]"]),
        ({"seeds": 0}, ["seeds", "0"]),
        ({"baseline": "grppo"}, ["baseline", "'grppo'", "ppo, dfpo"]),
        ({"baseline": ["ppo"]}, ["baseline", "['ppo']", "ppo, dfpo"]),
        ({"arms": {"mine": {"algorithm": ["ppo"]}}}, ["arm mine", "algorithm", "['ppo']"]),
        ({"domains": ["suit"]}, ["suit", "task"]),
        ({"base": {"model": "no/such/model"}}, ["model", "no/such/model"]),
        ({"base": {"steps": -1}}, ["steps", "-1"]),
        ({"tuned": "nowhere.yaml"}, ["tuned", "nowhere.yaml", "dfpo tune"]),
        ({"output": 3}, ["output", "3", "path"]),
    ],
)  # fmt: skip
def test_a_bad_recipe_is_one_line_before_any_work(tmp_path, capsys, changes, words):
    assert main(["compare", write(tmp_path, **changes)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for word in words:
        assert word in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "flags", "words"),
    [
        ({"domains": ["suite"]}, ["--task", "hard"], ["task", "domain suite"]),
        ({"arms": {"ppo": {}, "averse": {"algorithm": "dfpo", "risk": "cvar-lower"}}},
         ["--risk", "neutral"], ["risk", "arm averse"]),
        ({"noises": {"late": {"noise": "flip=0.1", "policy.clip": 0.1}}},
         ["--policy.clip", "0.2"], ["policy.clip", "noise late"]),
    ],
)  # fmt: skip
def test_a_flag_that_an_axis_sets_is_refused(tmp_path, capsys, changes, flags, words):
    assert main(["compare", write(tmp_path, **changes), *flags]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "as a flag" in said
    assert said.startswith(f"dfpo compare: error: {words[0]}: ") and words[1] in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("base", "flags", "name"),
    [
        ({}, {}, "suite"),
        ({"task": "hard"}, {}, "hard"),
        ({"task": "hard"}, {"task": "suite"}, "suite"),
        ({}, {"data": "here/mine.jsonl", "reward": "score.py:reward"}, "mine"),
    ],
)
def test_the_only_domain_is_called_by_what_runs(base, flags, name):
    tree = {"output": "out", "arms": ["ppo"], "seeds": 1, "base": base}
    (cell,) = grid(parse_recipe(tree, Path(), flags), {})
    assert cell.domain == name


def test_names_may_not_collide(tmp_path):
    with pytest.raises(ConfigError, match="twice"):
        load_recipe(Path(write(tmp_path, arms=["ppo", "ppo"])), {})
