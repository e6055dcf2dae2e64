"""Rollout functions: a user's own way from prompts to answers, of several turns and with tools.

A function gets the keyword ``prompts``, a list with one item per answer, and where its signature
takes them ``generate``, ``tokenizer`` and the columns of the data. It returns a mapping with TRL's
names: ``completion_ids``, and if it likes ``env_mask`` (0 on tokens of a tool or an environment,
which are not trained on), ``logprobs`` and ``prompt_ids``; what else it returns is a column for the
reward. What it does wrong is one line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dfpo.config import Config, ConfigError
from dfpo.rewards.calls import FAILURES, accepted, guarded, import_file, raised
from dfpo.rewards.sources import PYTHON
from dfpo.rollout.processes import ProcessLost
from dfpo.tasks.files import RESERVED

RolloutFunction = Callable[..., Mapping[str, Any]]
KNOWN = ("prompt_ids", "completion_ids", "env_mask", "logprobs")
# Rounding may leave the logarithm of a sure token above 0.
LARGEST_LOGPROB = 1e-3


class RolloutError(ValueError):
    """What a rollout function did wrong, in one line."""


class Turn(NamedTuple):
    """What the policy says to one prompt: an item of what ``generate`` returns."""

    text: str  # without special tokens
    token_ids: list[int]  # the end token included
    logprobs: list[float] | None  # of the engine that drew them; None where they are the policy's


@dataclass(frozen=True)
class Played:
    """A function's answers, checked."""

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    env_mask: list[list[bool]]
    logprobs: list[list[float]] | None
    columns: dict[str, list[Any]]


@dataclass(frozen=True)
class Room:
    """What tokens the model has, and how many go into it."""

    vocabulary: int
    context: int


def load_rollout(config: Config, given: RolloutFunction | None = None) -> RolloutFunction | None:
    """The function that is given or that ``rollout.function`` names. Raises ConfigError."""
    text = config.rollout.function
    if given is not None or text is None:
        return given
    if text.startswith(PYTHON):
        name = text.removeprefix(PYTHON)
        raise ConfigError(
            f"rollout: {name} was a function given in Python, which no file holds; go on with "
            f"dfpo.load(RUN).resume(rollout={name})"
        )

    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise ConfigError(f"rollout: is {text}, must be FILE.py:FUNCTION")
    if not Path(file).is_file():
        raise ConfigError(f"rollout: there is no file {file}")
    function = getattr(import_file(Path(file), "rollout"), name, None)
    if not callable(function):
        raise ConfigError(f"rollout: {file} defines no function {name}")

    return function


def call(function: RolloutFunction, keywords: dict[str, Any], extra: dict[str, Any]) -> Any:
    """What the function returns; RolloutError says what it raised. ``extra`` are keywords for a
    signature that takes them."""
    try:
        with guarded(0):
            return function(**keywords, **accepted(function, extra))
    except (RolloutError, ProcessLost):
        raise
    except FAILURES as error:
        raise RolloutError(f"rollout: {_name(function)} {raised(error)}") from error


def read_played(
    function: RolloutFunction, returned: Any, prompts: list[list[int]], room: Room
) -> Played:
    """What a function returned for prompts of those tokens; RolloutError names what is wrong."""
    name = _name(function)
    if not isinstance(returned, Mapping) or "completion_ids" not in returned:
        what = list(returned) if isinstance(returned, Mapping) else type(returned).__name__
        raise RolloutError(
            f"rollout: {name} returned {what}, must return a mapping with completion_ids"
        )

    lists = {
        key: _column(f"rollout: {name}'s {key}", value, len(prompts))
        for key, value in returned.items()
        if value is not None or key not in KNOWN
    }
    for key in (*RESERVED, "prompt"):
        if key in lists and key not in KNOWN:
            raise RolloutError(
                f"rollout: {name} returned {key}, must not: the reward function is given it anyway"
            )

    answers = lists["completion_ids"]
    own = lists.get("prompt_ids", prompts)
    for i in range(len(prompts)):
        _check_tokens(f"rollout: {name}'s completion_ids of answer {i + 1}", answers[i], room)
        _check_tokens(f"rollout: {name}'s prompt_ids of answer {i + 1}", own[i], room)
        if len(own[i]) + len(answers[i]) > room.context:
            raise RolloutError(
                f"rollout: {name}'s answer {i + 1} and its prompt have "
                f"{len(own[i]) + len(answers[i])} tokens, must be at most {room.context}, the "
                "model's context"
            )

    mask = lists.get("env_mask", [[1] * len(ids) for ids in answers])
    logprobs = lists.get("logprobs")
    for i, ids in enumerate(answers):
        _check_mask(f"rollout: {name}'s env_mask of answer {i + 1}", mask[i], len(ids))
        if logprobs is not None:
            what = f"rollout: {name}'s logprobs of answer {i + 1}"
            _check_logprobs(what, logprobs[i], mask[i])

    return Played(
        prompt_ids=[list(ids) for ids in own],
        completion_ids=[list(ids) for ids in answers],
        env_mask=[[bool(x) for x in row] for row in mask],
        logprobs=logprobs and [_known(*pair) for pair in zip(logprobs, mask, strict=True)],
        columns={key: value for key, value in lists.items() if key not in KNOWN},
    )


def _name(function: RolloutFunction) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _known(logprobs: list[float], mask: list[bool]) -> list[float]:
    """Those of counted tokens; of a tool's tokens nobody knows any."""
    return [float(x) if kept else 0.0 for x, kept in zip(logprobs, mask, strict=True)]


def _column(what: str, value: Any, count: int) -> list[Any]:
    if hasattr(value, "tolist"):  # tensors and arrays
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise RolloutError(f"{what} is {type(value).__name__}, must be a list, an item per answer")
    if len(value) != count:
        raise RolloutError(f"{what} has {len(value)} items, must have {count}, one per answer")
    return [item.tolist() if hasattr(item, "tolist") else item for item in value]


def _check_tokens(what: str, ids: Any, room: Room) -> None:
    if not isinstance(ids, (list, tuple)) or not ids:
        raise RolloutError(f"{what} is {ids!r:.60}, must be a list of at least one token id")
    for token in ids:
        whole = isinstance(token, int) and not isinstance(token, bool)
        if not whole or not 0 <= token < room.vocabulary:
            raise RolloutError(
                f"{what} holds {token!r:.60}, must be integers from 0 to {room.vocabulary - 1}, "
                "the model's tokens"
            )


def _check_mask(what: str, mask: Any, count: int) -> None:
    _check_length(what, mask, count)
    for item in mask:
        if item not in (0, 1):
            raise RolloutError(f"{what} holds {item!r:.60}, must be 0 or 1 for each token")
    if not any(mask):
        raise RolloutError(f"{what} is 0 on all tokens, must be 1 on at least one")


def _check_logprobs(what: str, logprobs: Any, mask: list[Any]) -> None:
    _check_length(what, logprobs, len(mask))
    for value, kept in zip(logprobs, mask, strict=True):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if kept and not (number and math.isfinite(value) and value <= LARGEST_LOGPROB):
            raise RolloutError(
                f"{what} holds {value!r:.60}, must be finite numbers of at most 0 where env_mask "
                "is 1"
            )


def _check_length(what: str, value: Any, count: int) -> None:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        size = f"{len(value)} items" if isinstance(value, (list, tuple)) else repr(value)[:60]
        raise RolloutError(f"{what} has {size}, must have {count}, one for each of its tokens")
