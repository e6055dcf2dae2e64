"""What scores answers: the user's functions, reward models, a task's verifier.

A reward function has TRL's signature: keywords ``prompts``, ``completions``, ``completion_ids`` and
the columns of the data, lists of one item per answer; it returns one number per answer, or None
for an answer that it does not score. To chat prompts the completions are lists of one assistant
message, as in TRL. What it returns otherwise (NaN, another type, too few) and what it raises never
becomes a reward: the answer is left out and counted.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dfpo.config import Config, ConfigError
from dfpo.config.types import Row, Scored
from dfpo.tasks.source import columns

RewardFunction = Callable[..., Sequence[float | None]]
REWARD_MODEL_BATCH = 16
# Before the name of a function that was given in Python, which no file holds.
PYTHON = "python:"


class RewardError(ValueError):
    """What a reward function did wrong, in one line."""


@dataclass(frozen=True)
class Reward:
    """The weighted sum of several reward functions.

    A None of one function leaves it out of an answer's sum (as in TRL); an answer that all leave
    out is unscored; an answer on which one fails is invalid.
    """

    names: tuple[str, ...]
    functions: tuple[RewardFunction, ...]
    weights: tuple[float, ...]
    # (completion, domain) -> its final answer, for votes; None where the task has no such thing
    extract: Callable[[str, str], str | None] | None = None

    def __call__(
        self,
        rows: list[Row],
        completions: list[str],
        completion_ids: list[list[int]],
        *,
        strict: bool = False,
    ) -> Scored:
        """Scores of a batch; ``strict`` raises RewardError at the first failure."""
        keywords = _keywords(rows, completions, completion_ids)
        found: list[list[float | None]] = []
        failed: set[int] = set()
        problem = None
        for name, function in zip(self.names, self.functions, strict=True):
            scores, failures = _score(name, function, keywords, len(rows), strict)
            found.append(scores)
            failed |= failures.keys()
            problem = problem or next(iter(failures.values()), None)
        totals, unscored = [], 0
        for i in range(len(rows)):
            terms = [w * s[i] for w, s in zip(self.weights, found, strict=True) if s[i] is not None]
            if i in failed:
                terms = []
            elif not terms:
                unscored += 1
            totals.append(sum(terms) if terms else math.nan)
        parts = {}
        if len(self.names) > 1:
            parts = {name: _tensor(scores) for name, scores in zip(self.names, found, strict=True)}
        return Scored(
            values=_tensor(totals),
            parts=parts,
            unscored=unscored,
            invalid=len(failed),
            problem=problem,
        )


def _keywords(
    rows: list[Row], completions: list[str], completion_ids: list[list[int]]
) -> dict[str, list]:
    """What a reward function is called with; completions in the form of their prompts."""
    prompts = [row["prompt"] for row in rows]
    shaped = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, completions, strict=True)
    ]
    return {
        "prompts": prompts,
        "completions": shaped,
        "completion_ids": completion_ids,
        **columns(rows),
    }


def _score(
    name: str, function: RewardFunction, keywords: dict[str, list], count: int, strict: bool
) -> tuple[list[float | None], dict[int, str]]:
    """Scores of a batch, None where there is none, and what went wrong at which answers. A batch
    that fails as a whole is tried again answer by answer, so that one bad answer costs one."""
    try:
        scores = call(function, keywords, count)
    except RewardError as error:
        if strict:
            raise RewardError(f"{name} {error}") from error
        if count == 1:
            return [None], {0: f"{name} {error}"}
        singles = [{key: [column[i]] for key, column in keywords.items()} for i in range(count)]
        each = [_score(name, function, single, 1, strict) for single in singles]
        return (
            [scores[0] for scores, _ in each],
            {i: failures[0] for i, (_, failures) in enumerate(each) if failures},
        )
    numbers: list[float | None] = []
    failures = {}
    for i, value in enumerate(scores):
        try:
            numbers.append(number(value))
        except RewardError as error:
            if strict:
                raise RewardError(f"{name} {error}") from error
            numbers.append(None)
            failures[i] = f"{name} {error}"
    return numbers, failures


def call(function: RewardFunction, keywords: dict[str, list], count: int) -> list[Any]:
    """What the function returns for a batch, as a list of ``count`` items; RewardError if it
    raises or returns anything else."""
    try:
        # Copies, since a function may sort or extend what it is given.
        scores = function(**{key: list(column) for key, column in keywords.items()})
    # Whatever the user's function raises is reported in its own words and counted.
    except Exception as error:  # noqa: BLE001
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise RewardError(f"raised {text[:300]}{_where(error)}") from error
    if hasattr(scores, "tolist"):  # tensors and arrays
        scores = scores.tolist()
    if not isinstance(scores, (list, tuple)):
        raise RewardError(f"returned {type(scores).__name__}, must return a list of numbers")
    if len(scores) != count:
        raise RewardError(
            f"returned {len(scores)} scores for {count} answers, must return one each"
        )
    return list(scores)


def number(value: Any) -> float | None:
    """A score as a float, None as None; RewardError for what is not a finite number."""
    if value is None:
        return None
    if hasattr(value, "item"):  # scalars of torch and numpy
        value = value.item()
    if not isinstance(value, (bool, int, float)):
        raise RewardError(f"returned {value!r:.60}, must return numbers or None")
    if not math.isfinite(value):
        raise RewardError(f"returned {value}, must return finite numbers or None")
    return float(value)


def load_reward(
    config: Config,
    verifier: RewardFunction | None,
    device: torch.device,
    extract: Callable[[str, str], str | None] | None = None,
    given: Sequence[RewardFunction] = (),
) -> Reward:
    """The rewards that are given or that the configuration names, else the task's verifier."""
    if given:
        names = _distinct([text.removeprefix(PYTHON) for text in config.reward.functions])
        weights = config.reward.weights or (1.0,) * len(given)
        return Reward(names, tuple(given), weights, extract)
    if not config.reward.functions:
        return Reward(("verifier",), (verifier,), (1.0,), extract)
    loaded = [load_function(text, device) for text in config.reward.functions]
    names = _distinct([name for name, _ in loaded])
    weights = config.reward.weights or (1.0,) * len(loaded)
    functions = tuple(function for _, function in loaded)
    return Reward(names, functions, weights, extract)


def load_function(text: str, device: torch.device) -> tuple[str, RewardFunction]:
    """Name and function of FILE.py:FUNCTION or of a reward model's directory."""
    if text.startswith(PYTHON):
        name = text.removeprefix(PYTHON)
        raise ConfigError(
            f"reward: {name} was a function given in Python, which no file holds; go on with "
            f"dfpo.load(RUN).resume(reward={name}), or give --reward FILE.py:FUNCTION"
        )
    if Path(text).is_dir():
        return Path(text).name, RewardModel(Path(text), device)
    file, colon, name = text.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise ConfigError(
            f"reward: is {text}, must be FILE.py:FUNCTION or a directory of a reward model"
        )
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"reward: there is no file {path}")
    function = getattr(_import(path), name, None)
    if not callable(function):
        raise ConfigError(f"reward: {path} defines no function {name}")
    return name, function


def _import(path: Path) -> ModuleType:
    """The module of a file, which may import its neighbours."""
    spec = importlib.util.spec_from_file_location(f"dfpo_reward_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles of the module look it up there
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    # The file is the user's: whatever it raises is told in one line.
    except Exception as error:  # noqa: BLE001
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"reward: {path} cannot be imported: {text}{_where(error)}") from error
    return module


def _where(error: BaseException) -> str:
    """File and line of the deepest frame of the user's own code."""
    trace = error.__traceback__
    place = ""
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.parent != Path(__file__).parent and "importlib" not in str(file):
            place = f" ({file.name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place


def _distinct(names: list[str]) -> tuple[str, ...]:
    """A number behind a name that is taken."""
    found: list[str] = []
    for name in names:
        count = 2
        unique = name
        while unique in found:
            unique, count = f"{name}-{count}", count + 1
        found.append(unique)
    return tuple(found)


class RewardModel:
    """A transformers sequence-classification model with one output, as a reward function: its
    logit on prompt and answer together, chat prompts through the model's own template."""

    def __init__(self, path: Path, device: torch.device) -> None:
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"reward: {path} holds no config.json, must be a sequence-classification model"
            )
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            self.model, found = AutoModelForSequenceClassification.from_pretrained(
                path, local_files_only=True, use_safetensors=True, output_loading_info=True,
                dtype=torch.float32,
            )  # fmt: skip
        # transformers raises many kinds of error for a directory that is no such model.
        except Exception as error:  # noqa: BLE001
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"reward: {path} holds no reward model: {reason}") from error
        if found["missing_keys"]:
            missing = ", ".join(sorted(found["missing_keys"])[:3])
            raise ConfigError(
                f"reward: {path} lacks the weights {missing}, must be a sequence-classification "
                "model"
            )
        if self.model.config.num_labels != 1:
            raise ConfigError(
                f"reward: {path} has {self.model.config.num_labels} outputs, must have one"
            )
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model.eval().to(device)

    @torch.no_grad()
    def __call__(self, prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        ids = [self._encode(p, c) for p, c in zip(prompts, completions, strict=True)]
        scores: list[float] = []
        for start in range(0, len(ids), REWARD_MODEL_BATCH):
            batch = self.tokenizer.pad(
                {"input_ids": ids[start : start + REWARD_MODEL_BATCH]}, return_tensors="pt"
            ).to(self.model.device)
            # Token types are not made, and every model has a default for them.
            logits = self.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
            scores += logits[:, 0].float().tolist()
        return scores

    def _encode(self, prompt: Any, completion: Any) -> list[int]:
        limit = {"truncation": True} if self.tokenizer.model_max_length < sys.maxsize else {}
        if isinstance(prompt, str):
            return self.tokenizer(prompt + completion, **limit)["input_ids"]
        text = self.tokenizer.apply_chat_template(prompt + completion, tokenize=False)
        return self.tokenizer(text, add_special_tokens=False, **limit)["input_ids"]


def _tensor(scores: list[float | None]) -> Tensor:
    return torch.tensor([math.nan if s is None else s for s in scores], dtype=torch.float32)
