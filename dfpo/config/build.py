"""From settings by dotted name, of a preset, a YAML file and flags, to a checked Config."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dfpo.config.algorithms import ALGORITHMS
from dfpo.config.errors import ConfigError
from dfpo.config.noise import noise_text
from dfpo.config.rules import check_read, check_together
from dfpo.config.settings import Config

MOST_ENTRIES = 100_000  # of a YAML file
# A word that people type for a setting.
SHORT = {"reward": "reward.functions", "rollout": "rollout.function"}
# What settings were called before, so that an old file is answered in its own words.
RENAMED = {
    "critic.return_low": "reward.low",
    "critic.location": "critic.linear_mean",
    "critic.return_high": "reward.high",
    "target.clip_reward": "reward.clip",
    "reward_weights": "reward.weights",
    "policy.dtype": "dtype",
    "policy.max_grad_norm": "max_grad_norm",
    # As others call them, or where one looks first: each governs policy and critic.
    "policy.schedule": "schedule",
    "critic.schedule": "schedule",
    "lr_scheduler_type": "schedule",
    "policy.weight_decay": "weight_decay",
    "critic.weight_decay": "weight_decay",
}


def sections() -> dict[str, type]:
    """Name and dataclass of each group of options; "" holds the top-level ones."""
    hints = typing.get_type_hints(Config)
    groups = {n: t for n, t in hints.items() if dataclasses.is_dataclass(t)}
    return {"": Config, **groups}


def options() -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """(dotted name, dataclass field, type) of every setting, in the order of the tree."""
    for section, cls in sections().items():
        hints = typing.get_type_hints(cls)
        for item in dataclasses.fields(cls):
            if not dataclasses.is_dataclass(hints[item.name]):
                dotted = f"{section}.{item.name}" if section else item.name
                yield dotted, item, hints[item.name]


def build_config(settings: Mapping[str, Any]) -> Config:
    """A checked Config from dotted settings over the algorithm's preset.

    Raises ConfigError for an unknown name or a value of the wrong type or out of its bounds.
    """
    known = {dotted: (item, kind) for dotted, item, kind in options()}
    settings = {SHORT.get(dotted, dotted): value for dotted, value in settings.items()}
    if old := [dotted for dotted in settings if dotted in RENAMED]:
        raise ConfigError("; ".join(f"{dotted}: is called {RENAMED[dotted]} now" for dotted in old))

    for dotted in settings:
        if dotted not in known:
            raise ConfigError(f"{dotted}: is no setting{suggestion(dotted, known)}")

    algorithm = settings.get("algorithm", Config.algorithm)
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise ConfigError(
            f"algorithm: is {algorithm!r}, must be one of {', '.join(ALGORITHMS)}"
            + suggestion(str(algorithm), ALGORITHMS)
        )

    preset = ALGORITHMS[algorithm].settings
    values, usual = (
        {dotted: _check(dotted, *known[dotted], value) for dotted, value in given.items()}
        for given in ({**preset, **settings}, preset)
    )
    check_read(values, usual)

    try:
        groups = {
            section: cls(**_below(values, section))
            for section, cls in sections().items()
            if section
        }
    except ValueError as error:
        raise ConfigError(f"coef.{error}") from None

    config = Config(**{k: v for k, v in values.items() if "." not in k}, **groups)
    check_together(config)
    return config


def load_yaml(path: Path) -> dict[str, Any]:
    """Dotted settings of a YAML file with nested or dotted keys."""
    return dict(flatten(read_yaml("config", path)))


def read_text(name: str, path: Path) -> str:
    """The text of a file; ``name`` is what the error calls it."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: {path} is not UTF-8 text: {error.reason}") from None


def read_yaml(name: str, path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; ``name`` is what the error calls it."""
    text = read_text(name, path)
    try:
        tree = yaml.safe_load(text) or {}
    except RecursionError:
        raise ConfigError(f"{name}: {path} is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: {path} is not YAML: {' '.join(str(error).split())}") from None

    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: {path} holds {type(tree).__name__}, must be a mapping")
    if written_out(tree) > MOST_ENTRIES:
        raise ConfigError(
            f"{name}: {path} refers to itself or repeats its parts, and would be more than "
            f"{MOST_ENTRIES} entries written out"
        )

    return tree


def written_out(tree: Any) -> float:
    """Entries of a tree with each shared part counted where it is used; infinite where a part
    holds itself."""
    sizes: dict[int, float] = {}

    def size(node: Any) -> float:
        if not isinstance(node, (dict, list)):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = math.inf  # while it is being counted
            parts = node.values() if isinstance(node, dict) else node
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    return size(tree)


def stored_settings(name: str, run: Path) -> dict[str, Any]:
    """The settings of an existing run; ConfigError where ``run`` is none."""
    if not (run / "config.yaml").is_file():
        what = "holds no config.yaml" if run.is_dir() else "is no directory"
        raise ConfigError(f"{name}: {run} {what}, must be the directory of a run")
    return load_yaml(run / "config.yaml")


def to_yaml(config: Config) -> str:
    """Every setting of a run, in the form that --config reads."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)


def suggestion(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted settings of a nested tree; a noise in parts is the one setting that it stands for."""
    for key, value in tree.items():
        if key == "noise" and not prefix and isinstance(value, Mapping):
            yield key, noise_text(value)
        elif isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _below(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    prefix = f"{section}."
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def _check(dotted: str, item: dataclasses.Field, kind: Any, value: Any) -> Any:
    """The value in its field's type and bounds; accepts what flags (text) and YAML give."""
    optional = isinstance(kind, types.UnionType)
    kind = typing.get_args(kind)[0] if optional else kind
    if value is None and optional:
        return None

    if typing.get_origin(kind) is tuple:
        parts = value if isinstance(value, (list, tuple)) else [value]
        words = [w for p in parts for w in (p.split(",") if isinstance(p, str) else [p])]
        return tuple(_check(dotted, item, typing.get_args(kind)[0], w) for w in words if w != "")

    wrong = ConfigError(f"{dotted}: is {value!r}, must be {must_be(item, kind)}")
    if kind is bool:
        text = str(value).lower()
        if text not in ("true", "false"):
            raise wrong
        return text == "true"

    if kind is str:
        if not isinstance(value, str):
            raise wrong
    elif isinstance(value, bool):
        raise wrong
    else:
        try:
            number = kind(value)
        except (TypeError, ValueError):
            raise wrong from None
        if number != number or (kind is int and isinstance(value, float) and number != value):
            raise wrong
        value = number

    low, high, choices = (item.metadata.get(key) for key in ("low", "high", "choices"))
    if choices and value not in choices:
        raise ConfigError(f"{wrong}{suggestion(value, dict.fromkeys(choices))}")
    if (low is not None and value < low) or (high is not None and value > high):
        raise wrong

    return value


def must_be(item: dataclasses.Field, kind: Any) -> str:
    """What a value must be, in words."""
    low, high, choices = (item.metadata.get(key) for key in ("low", "high", "choices"))
    if choices:
        return f"one of {', '.join(choices)}"
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text"}[kind]
    if low is not None and high is not None:
        return f"{words} in [{low:.10g}, {high:.10g}]"
    return f"{words} >= {low:g}" if low is not None else words
