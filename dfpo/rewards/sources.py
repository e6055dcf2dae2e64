"""Where rewards come from: the table of sources, and what a configuration or Python names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from dfpo.config import Config, ConfigError
from dfpo.config.choices import REWARD_SOURCES
from dfpo.rewards.calls import RewardFunction, import_file
from dfpo.rewards.functions import Reward
from dfpo.rewards.model import RewardModel

# Before the name of a function that was given in Python, which no file holds.
PYTHON = "python:"


def load_reward(
    config: Config,
    verifier: RewardFunction | None,
    device: torch.device,
    extract: Callable[[str, str], str | None] | None = None,
    given: Sequence[RewardFunction] = (),
) -> Reward:
    """The rewards that are given or that the configuration names, else the task's verifier."""
    settings = config.reward
    if given:
        names = _distinct([text.removeprefix(PYTHON) for text in settings.functions])
        functions = tuple(given)
    elif settings.functions:
        loaded = [load_function(text, device) for text in settings.functions]
        names = _distinct([name for name, _ in loaded])
        functions = tuple(function for _, function in loaded)
    else:
        names, functions = ("verifier",), (verifier,)

    weights = settings.weights or (1.0,) * len(functions)
    return Reward(names, functions, weights, extract, settings.timeout, config.steps)


def load_function(text: str, device: torch.device) -> tuple[str, RewardFunction]:
    """Name and function of what a word of ``reward.functions`` names, by the first source that
    knows it. Raises ConfigError."""
    for source in REWARD_SOURCES.values():
        if known := source.load()(text, device):
            return known
    raise ConfigError(
        f"reward: is {text}, must be FILE.py:FUNCTION or a directory of a reward model"
    )


def from_python(text: str, device: torch.device) -> None:
    """A function that was given in Python is not found again by its name."""
    if text.startswith(PYTHON):
        name = text.removeprefix(PYTHON)
        raise ConfigError(
            f"reward: {name} was a function given in Python, which no file holds; go on with "
            f"dfpo.load(RUN).resume(reward={name}), or give --reward FILE.py:FUNCTION"
        )


def from_model(text: str, device: torch.device) -> tuple[str, RewardFunction] | None:
    path = Path(text)
    return (path.name, RewardModel(path, device)) if path.is_dir() else None


def from_file(text: str, device: torch.device) -> tuple[str, RewardFunction] | None:
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py"):
        return None
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"reward: there is no file {path}")
    function = getattr(import_file(path), name, None)
    if not callable(function):
        raise ConfigError(f"reward: {path} defines no function {name}")

    return name, function


def _distinct(names: list[str]) -> tuple[str, ...]:
    """A number behind a name that is taken."""
    unique: list[str] = []
    for name in names:
        count, own = 2, name
        while own in unique:
            own, count = f"{name}-{count}", count + 1
        unique.append(own)
    return tuple(unique)
