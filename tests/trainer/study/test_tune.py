"""How settings are chosen: on noisy held-out rewards, other seeds, one budget for every arm."""

import json
from pathlib import Path

import pytest
import yaml
from small_grids import SEARCH as RECIPE

from dfpo.__main__ import main
from dfpo.config import ConfigError
from dfpo.study import tune, tuned
from dfpo.study.recipe import grid, load_recipe


def write(folder, **changes):
    path = folder / "grid.yaml"
    path.write_text(
        yaml.safe_dump(RECIPE | {"output": str(folder / "out")} | changes, sort_keys=False)
    )
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tune")
    assert main(["tune", str(write(folder)), "--jobs", "2"]) == 0
    return folder


def test_trials_are_judged_by_noisy_rewards_of_other_prompts(found, tmp_path):
    """Nothing is trained, so all trials are the first policy. Its clean reward on the prompts of
    seed 20 is what the first two steps of a run of that seed with frozen policy see; with every
    label flipped the noisy reward is one minus it."""
    record = yaml.safe_load((found / "found.yaml").read_text())
    words = ["--seed", "20", "--steps", "2", "--critic.warmup-steps", "2", "--rollout.prompts", "3"]
    words += ["--rollout.samples", "2", "--rollout.max-new-tokens", "30", "--eval.prompts", "0"]
    words += ["--plots", "false", "--runs-dir", str(tmp_path), "--name", "clean"]
    assert main(["train", *words]) == 0
    lines = (tmp_path / "clean/metrics.jsonl").read_text().splitlines()
    clean = sum(json.loads(line)["reward/clean"] for line in lines) / 2
    assert 0 < clean < 1
    for trials in record["trials"].values():
        assert len(trials) == 2
        for trial in trials:
            flipped, plain = trial["runs"]
            assert (flipped["noise"], plain["noise"], plain["seed"]) == ("flip=1", "none", 10)
            assert plain["noisy"] == pytest.approx(clean)
            assert flipped["noisy"] == pytest.approx(1 - clean)
            assert trial["noisy_reward"] == pytest.approx(0.5)
            assert plain["answers"] == 12


def test_the_first_of_equals_is_chosen_and_every_trial_kept(found):
    record = yaml.safe_load((found / "found.yaml").read_text())
    assert record["chosen"] == {
        "ppo": {"policy.learning_rate": 1e-4},
        "dfpo": {"policy.learning_rate": 1e-3, "coef.risk": 0.0},
    }
    tried = [trial["settings"]["coef.risk"] for trial in record["trials"]["dfpo"]]
    assert tried == [0.0, 0.1]
    text = (found / "found.yaml").read_text()
    assert text.startswith(f"# Written by `dfpo tune {found / 'grid.yaml'}`")


def test_trials_never_meet_the_test_prompts(found):
    for path in (found / "out/tune/cells").rglob("*.result.json"):
        result = json.loads(path.read_text())
        assert result["benchmarks"] == {} and result["after"] == {}
        assert result["seed"] == 10


def test_the_comparison_takes_what_was_found(found):
    recipe = load_recipe(found / "grid.yaml", {})
    cells = {cell.arm: cell for cell in grid(recipe, tuned.read_chosen(recipe))}
    # Over the arm's own settings.
    assert cells["dfpo"].settings["coef.risk"] == 0.0
    assert cells["ppo"].settings["policy.learning_rate"] == 1e-4
    assert "coef.risk" not in cells["ppo"].settings


def made_up(arm, seed, noisy):
    return {
        "arm": arm, "seed": seed, "noise": "none", "domain": "suite", "version": "0.1.0+abc",
        "validation": {"noisy": noisy, "noisy_se": 0.1, "answers": 12},
        "answers": 36, "tokens": 1000, "policy_updates": 4,
    }  # fmt: skip


def test_the_mean_over_seeds_chooses(tmp_path):
    """Trial 1 of ppo has the best single seed, trial 0 the better mean: .5 against .45."""
    recipe = load_recipe(write(tmp_path), {})
    results = [made_up("ppo-trial0", 1, 0.5), made_up("ppo-trial0", 2, 0.5)]
    results += [made_up("ppo-trial1", 1, 0.8), made_up("ppo-trial1", 2, 0.1)]
    results += [made_up("dfpo-trial0", 1, 0.2), made_up("dfpo-trial1", 1, 0.3)]
    record = tune.choose_settings(recipe, results)
    assert record["chosen"]["ppo"] == {"policy.learning_rate": 1e-4}
    assert record["chosen"]["dfpo"]["coef.risk"] == 0.1
    assert [t["noisy_reward"] for t in record["trials"]["ppo"]] == pytest.approx([0.5, 0.45])


def test_a_trial_that_broke_is_not_chosen(tmp_path):
    recipe = load_recipe(write(tmp_path), {})
    results = [made_up("ppo-trial0", 1, None), made_up("ppo-trial1", 1, 0.1)]
    results += [made_up("dfpo-trial0", 1, 0.2), made_up("dfpo-trial1", 1, 0.3)]
    record = tune.choose_settings(recipe, results)
    assert record["chosen"]["ppo"] == {"policy.learning_rate": 1e-3}
    assert record["trials"]["ppo"][0]["noisy_reward"] is None


def space(**changes):
    return {"tune": RECIPE["tune"] | changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (space(seeds=[3]), ["seed 3", "twice"]),
        (space(prompt_seed=10), ["seed 10", "twice"]),
        (space(prompts=0), ["tune.prompts", "0"]),
        (space(prompt_seed=3_000_000_000), ["tune.prompt_seed", "3000000000", "2147483647"]),
        (space(together=[["coef.risk"]]), ["tune.together", "coef.risk", "that arms try"]),
        (space(together=["coef.risk"],
               arms={"ppo": {"coef.risk": [0.1]}, "dfpo": {"coef.risk": [0.2]}}),
         ["tune.together", "coef.risk", "no value that all"]),
        (space(noises=["flip=0.2"]), ["tune.noises", "flip=0.2", "flip=1, none"]),
        (space(noises=[]), ["tune.noises", "[]"]),
        (space(arms=["ppo", "dfpo"]), ["tune.arms", "['ppo', 'dfpo']"]),
        (space(arms={"ppo": {"coef.risk": [1]}}), ["tune.arms.dfpo", "not given"]),
        (space(arms={"ppo": {"policy.clip": [0.1]}, "dfpo": {"coef.risk": [0, 1]}}),
         ["ppo 1, dfpo 2", "equally many"]),
        (space(arms={"ppo": {"policy.clip": 0.1}, "dfpo": {"coef.risk": [0]}}),
         ["policy.clip", "0.1", "list"]),
        (space(arms={"ppo": {"policy.clp": [0.1]}, "dfpo": {"coef.risk": [0]}}),
         ["policy.clp", "did you mean policy.clip"]),
        (space(arms={"ppo": {"policy.epochs": [2]}, "dfpo": {"coef.risk": [0]}}),
         ["policy.epochs", "2 for ppo-trial0", "1 for dfpo-trial0", "one budget"]),
        (space(arms={"ppo": {"rollout.temperature": [2]}, "dfpo": {"coef.risk": [0]}}),
         ["rollout.temperature", "2.0 for ppo-trial0", "1.0 for dfpo-trial0", "one budget"]),
        (space(arms={"ppo": {"critic.warmup_epochs": [2]}, "dfpo": {"coef.risk": [0]}}),
         ["critic.warmup_epochs", "2 for ppo-trial0", "4 for dfpo-trial0", "one budget"]),
        (space(arms={"ppo": {"task": ["hard"]}, "dfpo": {"coef.risk": [0]}}),
         ["task", "hard for ppo-trial0", "None for dfpo-trial0", "one budget"]),
        (space(sedes=[1]), ["tune.sedes", "did you mean seeds"]),
        ({"tune": None}, ["tune", "None", "mapping"]),
        ({"tuned": None}, ["tuned", "not given"]),
    ],
)  # fmt: skip
def test_an_unfair_or_wrong_search_is_one_line_before_any_work(tmp_path, capsys, changes, words):
    assert main(["tune", str(write(tmp_path, **changes))]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for word in words:
        assert word in said
    assert not (tmp_path / "out").exists()


def test_a_setting_is_chosen_for_all_arms_together(tmp_path):
    """Alone, ppo would take .9 by a hair and dfpo 1: best of .9 .50 and .40, of 1 .49 and .60.
    Within that each takes its own rate; grpo, which does not try it, is left alone."""
    critic = {"policy.learning_rate": [1, 2], "target.lam": [0.9, 1.0]}
    arms = {"ppo": critic, "dfpo": critic, "grpo": {"policy.learning_rate": [1, 2, 3, 4]}}
    search = RECIPE["tune"] | {"arms": arms}
    scores = {"ppo": (0.5, 0.48, 0.3, 0.49), "dfpo": (0.4, 0.6, 0.3, 0.2), "grpo": (1, 2, 3, 4)}
    results = [
        made_up(f"{arm}-trial{n}", 10, noisy)
        for arm, values in scores.items()
        for n, noisy in enumerate(values)
    ]
    changes = {"arms": {arm: {} for arm in arms}, "noises": ["none"]}

    def chosen(**more):
        recipe = load_recipe(write(tmp_path, **changes, tune=search | more), {})
        settings = tune.choose_settings(recipe, results)["chosen"]
        return {arm: tuple(own.values()) for arm, own in settings.items()}

    assert chosen() == {"ppo": (1, 0.9), "dfpo": (1, 1.0), "grpo": (4,)}
    assert chosen(together=["target.lam"]) == {"ppo": (2, 1.0), "dfpo": (1, 1.0), "grpo": (4,)}
    for wrong in ("target.lam", ["coef.risk"]):
        with pytest.raises(ConfigError, match="tune.together"):
            chosen(together=wrong)


def test_the_budget_is_one_within_a_domain(tmp_path):
    """Domains may differ; an arm without a critic has nothing to warm up."""
    grpo = {"critic.warmup_steps": 15}
    arms = {"ppo": {"policy.clip": [0.2]}, "grpo": {"policy.clip": [0.2]}}
    changes = {
        "arms": {"ppo": {}, "grpo": grpo},
        "domains": {"a": {"task": "hard"}, "b": {"steps": 9}},
    }
    changes["base"] = RECIPE["base"] | {"critic.warmup_epochs": 9}
    tune.check_budget(tune.trials(load_recipe(write(tmp_path, **changes, **space(arms=arms)), {})))


def test_the_shipped_search_gives_arms_one_budget():
    recipe = load_recipe(Path(__file__).parents[3] / "recipes/compare.yaml", {})
    cells = tune.trials(recipe)
    tune.check_budget(cells)
    counts = {arm: sum(c.arm.startswith(f"{arm}-trial") for c in cells) for arm in recipe.arms}
    assert set(counts.values()) == {4}
