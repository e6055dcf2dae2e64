"""The file in which ``dfpo tune`` leaves the settings of each arm, and whose search it is of."""

from __future__ import annotations

import json
import sys
from typing import Any

from dfpo.config import ConfigError
from dfpo.config.build import flatten, read_yaml
from dfpo.study.recipe import Recipe, Settings

# Flags in which a search and its comparison may differ: how runs are watched and evaluated.
FREE = ("checkpoint_every", "max_unscored_steps", "device", "threads", "eval_data")


def read_tuned(recipe: Recipe) -> dict[str, Settings]:
    """Settings that ``dfpo tune`` chose for each arm; empty where the recipe names no such file."""
    return {} if recipe.tuned is None else read_chosen(recipe)


def described(recipe: Recipe) -> dict[str, Any]:
    """The search as plain values, by which a stale file is known."""
    search = vars(recipe.tune) | {
        "noises": {name: recipe.noises[name] for name in recipe.tune.noises},
        "domains": {name: recipe.domains[name] for name in recipe.tune.domains},
        "base": recipe.base,
        "of": recipe.arms,
    }
    return json.loads(json.dumps(search, default=str))  # a date that YAML reads is text here


def learning_flags(recipe: Recipe) -> Settings:
    """Flags that change what a run learns."""
    flags = recipe.flags.items()
    return {k: str(v) for k, v in flags if k not in FREE and not k.startswith("eval.")}


def read_chosen(recipe: Recipe) -> dict[str, Settings]:
    """The settings that were found for each arm; ConfigError where the file is not there or is of
    another search."""
    path = recipe.tuned
    if not path.is_file():
        raise ConfigError(f"tuned: there is no file {path}; dfpo tune RECIPE writes it")
    tree = read_yaml("tuned", path)

    if recipe.tune is not None and tree.get("search") != described(recipe):
        raise ConfigError(
            f"tuned: {path} comes of another search than this recipe's; run dfpo tune again"
        )

    if tree.get("flags", {}) != learning_flags(recipe):
        # A shorter look at a tuned recipe is worth having, and no comparison of tuned arms.
        searched, here = tree.get("flags", {}), learning_flags(recipe)
        print(
            f"dfpo compare: {path} was tuned with the flags {searched}, this runs with {here}: "
            "what was found may not be the best here",
            file=sys.stderr,
        )

    chosen = tree.get("chosen")
    if not isinstance(chosen, dict) or set(chosen) != set(recipe.arms):
        raise ConfigError(f"tuned: {path} must have settings under chosen for each arm")
    return {arm: dict(flatten(settings)) for arm, settings in chosen.items()}
