"""``dfpo tune``: settings for the arms of a comparison, each arm on the same budget.

A trial is judged by the noisy reward of its final policy on held-out training prompts, what a user
without clean rewards has. Its seeds and its prompts are not the comparison's, and the test prompts
are not even generated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from dfpo.config import ConfigError, build_config
from dfpo.config.build import flatten
from dfpo.run.records import replace_text
from dfpo.study.grid import LOCAL, command_line, narrow, read_results, run
from dfpo.study.recipe import (
    Cell,
    Recipe,
    Settings,
    Validation,
    load_recipe,
    make_cell,
    own_settings,
)
from dfpo.study.tuned import described, learning_flags

# What the budget is, and what is learned: trials differ in how.
BUDGET = (
    "steps", "rollout.prompts", "rollout.samples", "rollout.max_new_tokens", "rollout.temperature",
    "policy.epochs", "policy.minibatches", "critic.warmup_steps", "critic.warmup_epochs", "model",
    "task", "data", "reward.functions", "reward.weights", "noise",
)  # fmt: skip


def tune(
    path: Path, output: Path | None, jobs: int | None, flags: Settings, where: str = LOCAL
) -> None:
    """Runs all trials that are not done yet and writes the file that the recipe calls ``tuned``.
    Raises as ``dfpo.study.compare.compare`` does."""
    recipe = narrow(load_recipe(path, flags), output, None)
    if recipe.tune is None or recipe.tuned is None:
        missing = "tune" if recipe.tune is None else "tuned"
        raise ConfigError(f"{path}: {missing}: is not given, see docs/compare.md")
    cells = trials(recipe)
    check_budget(cells)
    command = command_line("tune", path, output, None, flags, where=where)
    failed = run(recipe.output / "tune", cells, jobs, command, where)
    if failed:
        raise failed
    record = choose_settings(recipe, read_results(cells))
    head = (
        f"# Written by `{command}`: settings of each arm by the mean noisy reward of its final\n"
        "# policy on held-out training prompts, over the seeds, noises and domains of the search.\n"
    )
    replace_text(recipe.tuned, head + yaml.safe_dump(record, sort_keys=False))

    for arm, best in record["chosen"].items():
        print(f"{arm}: {', '.join(f'{k} {v}' for k, v in best.items())}")

    print(f"all trials in {recipe.tuned}")


def trials(recipe: Recipe) -> list[Cell]:
    """A cell for every trial of every arm, seeds outermost."""
    search = recipe.tune
    folder = recipe.output / "tune" / "cells"
    validation = Validation(search.prompts, search.prompt_seed)
    return [
        make_cell(
            recipe, f"{arm}-trial{number}", own_settings(recipe, arm) | trial,
            domain=domain, noise=noise, seed=seed, folder=folder, validation=validation,
        )
        for seed in search.seeds
        for domain in search.domains
        for noise in search.noises
        for arm in recipe.arms
        for number, trial in enumerate(space(recipe, arm))
    ]  # fmt: skip


def space(recipe: Recipe, arm: str) -> Iterator[Settings]:
    """The settings that an arm tries: all combinations of its values."""
    values = recipe.tune.arms[arm]
    for combination in product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def check_budget(cells: list[Cell]) -> None:
    """Within a domain and a noise, every trial samples as many answers, passes over them as often
    and learns from the same thing."""
    first: dict[tuple[str, str, str], tuple[Any, str]] = {}
    for cell in cells:
        config = dict(flatten(asdict(build_config(cell.settings))))
        for name in BUDGET:
            if name == "critic.warmup_epochs" and config["critic.kind"] == "none":
                continue  # Nothing warms up, whatever it says.
            key = (cell.domain, cell.noise, name)
            theirs, arm = first.setdefault(key, (config[name], cell.arm))
            if config[name] != theirs:
                raise ConfigError(
                    f"tune: {name} is {theirs} for {arm} and {config[name]} for {cell.arm}, must "
                    "be the same for every arm: one budget"
                )


def choose_settings(recipe: Recipe, results: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of a search: what was chosen, how, and every trial."""
    record = {
        arm: [
            judge_trial(trial, [r for r in results if r["arm"] == f"{arm}-trial{number}"])
            for number, trial in enumerate(space(recipe, arm))
        ]
        for arm in recipe.arms
    }

    left = record
    for name in recipe.tune.together:
        left = agree(left, name)

    return {
        "chosen": {arm: best(trials)["settings"] for arm, trials in left.items()},
        "search": described(recipe),
        "flags": learning_flags(recipe),
        "version": sorted({r["version"] for r in results}),
        "trials": record,
    }


def best(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """The first of equals, so that the order of the values is an order of preference."""
    return max(trials, key=mean_noisy_reward)


def mean_noisy_reward(trial: dict[str, Any]) -> float:
    """Whatever beats a trial that ended at nothing finite."""
    return -math.inf if trial["noisy_reward"] is None else trial["noisy_reward"]


def agree(left: dict[str, list[dict[str, Any]]], name: str) -> dict[str, list[dict[str, Any]]]:
    """The trials with that value of a setting at which the arms that try it are best on average:
    chosen for each alone, the luck of one trial would stand between arms."""
    trying = [trials for trials in left.values() if name in trials[0]["settings"]]

    def taking(trials: list[dict[str, Any]], value: Any) -> list[dict[str, Any]]:
        return [trial for trial in trials if trial["settings"].get(name, value) == value]

    values = list(dict.fromkeys(t["settings"][name] for trials in trying for t in trials))
    common = [v for v in values if all(taking(trials, v) for trials in trying)]
    value = max(
        common, key=lambda v: fmean(mean_noisy_reward(best(taking(trials, v))) for trials in trying)
    )
    return {arm: taking(trials, value) for arm, trials in left.items()}


def judge_trial(trial: Settings, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One trial over the seeds, noises and domains of the search."""
    scores = [r["validation"]["noisy"] for r in runs]
    return {
        "settings": trial,
        "noisy_reward": None if None in scores else fmean(scores),
        "runs": [
            {"domain": r["domain"], "noise": r["noise"], "seed": r["seed"], **r["validation"]}
            for r in runs
        ],
        **{key: round(fmean(r[key] for r in runs)) for key in ("answers", "tokens")},
        "policy_updates": round(fmean(r["policy_updates"] for r in runs)),
    }
