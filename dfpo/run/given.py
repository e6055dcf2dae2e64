"""What Python hands to a run in place of paths: a loaded model, rows, reward functions.

What can be stored is written into the run's directory, ``first_policy/`` and ``data.jsonl``, and
its configuration names these, so that the run resumes from the command line too. A function cannot
be stored: the configuration names it "python:NAME", and whoever resumes gives it again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dfpo.config import ConfigError
from dfpo.config.build import flatten
from dfpo.config.types import Row
from dfpo.rewards.sources import PYTHON
from dfpo.rollout.functions import RolloutFunction
from dfpo.tasks.files import check_rows

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@dataclass(frozen=True)
class Given:
    """None where the configuration's path counts."""

    model: Loaded | None = None
    rows: list[Row] | None = None
    held_out: list[Row] | None = None
    rewards: tuple[Callable[..., Any], ...] = ()
    rollout: RolloutFunction | None = None

    def settings(self) -> dict[str, Any]:
        """The settings that stand for what is given until the run has a directory."""
        names = {"model": self.model, "data": self.rows, "eval_data": self.held_out}
        settings: dict[str, Any] = {k: "(given)" for k, v in names.items() if v is not None}
        if self.rewards:
            settings["reward.functions"] = [f"{PYTHON}{name_of(f)}" for f in self.rewards]
        if self.rollout is not None:
            settings["rollout.function"] = f"{PYTHON}{name_of(self.rollout)}"
        return settings

    def stored(self, run: Path) -> dict[str, str]:
        """Where ``store`` writes each of them, by setting."""
        places = {
            "model": (self.model, "first_policy"),
            "data": (self.rows, "data.jsonl"),
            "eval_data": (self.held_out, "eval_data.jsonl"),
        }
        folder = run.absolute()

        return {
            key: str(folder / name) for key, (value, name) in places.items() if value is not None
        }

    def store(self, folder: Path) -> None:
        """Writes model and rows into the directory of a new run."""
        if self.model is not None:
            for part in self.model:
                part.save_pretrained(folder / "first_policy")
        for name, rows in (("data.jsonl", self.rows), ("eval_data.jsonl", self.held_out)):
            if rows is not None:
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
                (folder / name).write_text("".join(lines), encoding="utf-8")


def name_of(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def read_model(model: Any) -> Loaded | None:
    """A loaded model and its tokenizer, ready for training; None for a path or nothing."""
    if model is None or isinstance(model, (str, Path)):
        return None
    if (
        not isinstance(model, (tuple, list)) or len(model) != 2
        or not isinstance(model[0], PreTrainedModel)
        or not isinstance(model[1], PreTrainedTokenizerBase)
    ):  # fmt: skip
        raise ConfigError(
            f"model: is {type(model).__name__}, must be a path, or (model, tokenizer) of "
            "transformers"
        )

    tokenizer = copy.deepcopy(model[1])
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    # The optimiser's steps need the precision; half precision is what the models multiply in.
    return model[0].float().eval(), tokenizer


def read_data(name: str, data: Any) -> list[Row] | None:
    """Rows of a list of mappings or of a ``datasets.Dataset``; None for a path or nothing."""
    if data is None or isinstance(data, (str, Path)):
        return None
    if not isinstance(data, Iterable):
        raise ConfigError(
            f"{name}: is {type(data).__name__}, must be a path, a list of rows or a Dataset"
        )

    rows = check_rows(name, ((f"row {i}", row) for i, row in enumerate(data, start=1)))
    try:
        json.dumps(rows)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: rows must hold text, numbers and lists: {error}") from None

    return rows


def read_rewards(reward: Any) -> tuple[tuple[Callable[..., Any], ...], list[str]]:
    """(functions, paths) of what ``reward`` is: one or several, all of one kind."""
    if reward is None:
        return (), []
    single = callable(reward) or isinstance(reward, (str, Path))
    several: Sequence[Any] = [reward] if single else list(reward)
    if all(callable(item) for item in several):
        return tuple(several), []
    if all(isinstance(item, (str, Path)) for item in several):
        return (), [str(item) for item in several]
    raise ConfigError("reward: must be functions, or paths, not some of each")


def read_rollout(rollout: Any) -> tuple[RolloutFunction | None, dict[str, Any]]:
    """(function, settings) of what ``rollout`` is: a function, "FILE.py:FUNCTION", or settings of
    that section."""
    if rollout is None:
        return None, {}
    if callable(rollout):
        return rollout, {}
    if isinstance(rollout, (str, Path)):
        return None, {"rollout.function": str(rollout)}
    if isinstance(rollout, Mapping):
        function = rollout.get("function")
        own = dict(flatten({"rollout": rollout}))
        if callable(function):
            del own["rollout.function"]
        return (function if callable(function) else None), own
    raise ConfigError(
        f"rollout: is {type(rollout).__name__}, must be a function, FILE.py:FUNCTION or a mapping "
        "of settings"
    )
