"""The configurations that ship."""

import math
from pathlib import Path

import pytest

from dfpo.config import build_config, load_yaml
from dfpo.config.noise import parse_noise
from dfpo.config.rules import only_read
from dfpo.study.compare import read_tuned
from dfpo.study.recipe import grid, load_recipe

FOLDER = Path(__file__).parents[3] / "recipes"
OF_RUNS = ("hard", "paper_8b", "smollm2")
OF_GRIDS = ("bounds", "compare", "cross_domain")


def test_every_recipe_is_of_a_known_kind():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {
        *OF_RUNS,
        *OF_GRIDS,
        "compare.tuned",
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
    assert config.task is not None
    # The comparison gives its arms by flags over the recipe.
    own = {"algorithm": "ppo", "seed": 3}
    assert build_config(only_read(settings, own) | own).algorithm == "ppo"


def test_the_papers_recipe_votes_and_reads_its_folder():
    config = build_config(load_yaml(FOLDER / "paper_8b.yaml"))
    assert parse_noise(config.noise).vote == 16
    assert config.task == "benchmarks:data/paper"
    assert config.steps == 500
