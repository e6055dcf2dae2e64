"""The file that a search leaves, and of which search it is. The search itself: test_tune.py."""

import pytest
import yaml
from small_grids import SEARCH as RECIPE

from dfpo.config import ConfigError
from dfpo.study import tune, tuned
from dfpo.study.recipe import load_recipe


def recipe_of(folder, flags=None, **changes):
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(RECIPE | {"output": str(folder / "out")} | changes))
    return load_recipe(path, flags or {})


def test_a_recipe_without_such_a_file_has_no_settings_of_it(tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({"seeds": [3], "arms": ["ppo"], "output": str(tmp_path)}))
    assert tuned.read_tuned(load_recipe(path, {})) == {}


@pytest.fixture
def searched(tmp_path):
    """A folder with the record of a search whose second trials were the better ones."""
    results = [
        {
            "arm": f"{arm}-trial{number}", "seed": 10, "noise": noise, "domain": "suite",
            "version": "0.1.0+abc", "validation": {"noisy": 0.1 + number},
            "answers": 36, "tokens": 1000, "policy_updates": 4,
        }
        for arm in ("ppo", "dfpo")
        for noise in ("flip=1", "none")
        for number in range(2)
    ]  # fmt: skip
    record = tune.choose_settings(recipe_of(tmp_path), results)
    (tmp_path / "found.yaml").write_text(yaml.safe_dump(record))
    return tmp_path


def test_each_arm_gets_what_was_found_for_it(searched):
    assert tuned.read_tuned(recipe_of(searched)) == {
        "ppo": {"policy.learning_rate": 1e-3},
        "dfpo": {"policy.learning_rate": 1e-3, "coef.risk": 0.1},
    }


# Names of noises and domains are those of the search, and what they set is not.
@pytest.mark.parametrize(
    "changes",
    [
        {"tune": RECIPE["tune"] | {"prompts": 7}},
        {"arms": {"ppo": {}, "dfpo": {"coef.risk": 0.3}}},
        {"base": {"steps": 9}},
        {"noises": {"flip=1": {"noise": "flip=0.1"}, "none": {"noise": "none"}}},
        {"domains": {"suite": {"task": "hard"}}},
    ],
)
def test_a_record_of_another_search_is_refused(searched, changes):
    with pytest.raises(ConfigError, match="another search"):
        tuned.read_chosen(recipe_of(searched, **changes))


def test_other_flags_than_the_searchs_are_said_where_they_matter(searched, capsys):
    tuned.read_chosen(recipe_of(searched, {"eval.prompts": "7", "threads": "1"}))
    assert "flags" not in capsys.readouterr().err
    assert tuned.read_chosen(recipe_of(searched, {"steps": "7"}))
    assert "was tuned with the flags {}, this runs with {'steps': '7'}" in capsys.readouterr().err


def test_a_record_that_is_missing_or_lacks_an_arm_is_refused(searched):
    record = yaml.safe_load((searched / "found.yaml").read_text())
    del record["chosen"]["ppo"]
    (searched / "found.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(ConfigError, match="must have settings under chosen for each arm"):
        tuned.read_chosen(recipe_of(searched))
    (searched / "found.yaml").unlink()
    with pytest.raises(ConfigError, match="there is no file .*; dfpo tune RECIPE writes it"):
        tuned.read_chosen(recipe_of(searched))
