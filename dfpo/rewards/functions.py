"""Scores of answers by reward functions.

A reward function has TRL's signature: keywords ``prompts``, ``completions``, ``completion_ids`` and
the columns of the data, lists of one item per answer, and where it takes them ``trainer_state``,
``log_metric`` and ``log_extra``; it returns one number per answer, or None for an answer that it
does not score, and may be ``async``. To chat prompts the completions are lists of one assistant
message, as in TRL. What it returns otherwise (NaN, another type, too few) and what it raises never
becomes a reward: the answer is left out and counted.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerState

from dfpo.config.types import Row, Scored
from dfpo.rewards.calls import RewardError, RewardFunction, call_all
from dfpo.tasks.source import columns

LARGEST = torch.finfo(torch.float32).max

__all__ = ["Reward", "RewardError", "RewardFunction", "number"]


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
    seconds: float = 0.0  # that a function may take for a batch; 0 for as long as it likes
    steps: int = 0  # of the run, which functions are told

    def __call__(
        self,
        rows: list[Row],
        completions: list[str],
        completion_ids: list[list[int]],
        *,
        step: int = 0,
        strict: bool = False,
    ) -> Scored:
        """Scores of a batch; ``strict`` raises RewardError at the first failure."""
        keywords = _keywords(rows, completions, completion_ids)
        log = Log(step, self.steps)
        results = call_all(self.functions, keywords, log.keywords(), self.seconds)

        scores: list[list[float | None]] = []
        failed: dict[int, str] = {}
        for name, function, result in zip(self.names, self.functions, results, strict=True):
            if isinstance(result, RewardError) and len(rows) > 1 and not strict:
                numbers, failures = self._one_by_one(function, keywords, result, log)
            else:
                numbers, failures = _numbers(result, len(rows))
            if strict and failures:
                raise RewardError(f"{name} {next(iter(failures.values()))}")
            scores.append(numbers)
            failed |= {i: f"{name} {words}" for i, words in failures.items() if i not in failed}

        totals, unscored = self._totals(scores, failed)
        parts = {}
        if len(self.names) > 1:
            parts = {name: _tensor(own) for name, own in zip(self.names, scores, strict=True)}
        return Scored(
            values=_tensor(totals),
            parts=parts,
            unscored=unscored,
            invalid=len(failed),
            problem=next(iter(failed.values()), None),
            logged=log.means(),
        )

    def _one_by_one(
        self, function: RewardFunction, keywords: dict[str, list], whole: RewardError, log: Log
    ) -> tuple[list[float | None], dict[int, str]]:
        """The answers of a batch that failed as a whole, each alone, so that one bad answer costs
        one. Where time ran out it would run out for each."""
        count = len(next(iter(keywords.values())))
        if "did not return" in str(whole):
            return [None] * count, dict.fromkeys(range(count), str(whole))
        numbers: list[float | None] = []
        failures: dict[int, str] = {}

        for i in range(count):
            single = {key: [column[i]] for key, column in keywords.items()}
            (result,) = call_all([function], single, log.keywords(), self.seconds)
            (value,), failure = _numbers(result, 1)
            numbers.append(value)
            if failure:
                failures[i] = failure[0]

        return numbers, failures

    def _totals(
        self, scores: list[list[float | None]], failed: dict[int, str]
    ) -> tuple[list[float], int]:
        totals, unscored = [], 0
        for i, own in enumerate(zip(*scores, strict=True)):
            terms = [w * s for w, s in zip(self.weights, own, strict=True) if s is not None]
            if i in failed:
                terms = []
            elif not terms:
                unscored += 1
            totals.append(sum(terms) if terms else math.nan)

        return totals, unscored


@dataclass
class Log:
    """What functions log of a batch, by the keywords that TRL gives them."""

    step: int
    steps: int = 0
    metrics: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def keywords(self) -> dict[str, Any]:
        return {
            "trainer_state": TrainerState(global_step=self.step, max_steps=self.steps),
            "log_metric": self.log_metric,
            "log_extra": self.log_extra,
        }

    def log_metric(self, name: str, value: float) -> None:
        """A number of the batch; several of one name are averaged."""
        self.metrics[str(name)].append(float(value))

    def log_extra(self, column: str, values: list[Any]) -> None:
        """A column beside the answers: of numbers the mean is kept, others have no metric."""
        numbers = [value for value in values if isinstance(value, (int, float))]
        if numbers and len(numbers) == len(values):
            self.metrics[str(column)].append(fmean(numbers))

    def means(self) -> dict[str, float]:
        return {name: fmean(values) for name, values in self.metrics.items()}


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


def _numbers(
    result: list[Any] | RewardError, count: int
) -> tuple[list[float | None], dict[int, str]]:
    """Scores of a batch, None where there is none, and what is wrong with which."""
    if isinstance(result, RewardError):
        return [None] * count, dict.fromkeys(range(count), str(result))
    numbers: list[float | None] = []
    failures: dict[int, str] = {}

    for i, value in enumerate(result):
        try:
            numbers.append(number(value))
        except RewardError as error:
            numbers.append(None)
            failures[i] = str(error)

    return numbers, failures


def number(value: Any) -> float | None:
    """A score as a float, None as None; RewardError for what float32 does not hold as a number."""
    if value is None:
        return None
    if hasattr(value, "item"):  # scalars of torch and numpy
        value = value.item()
    if not isinstance(value, (bool, int, float)):
        raise RewardError(f"returned {value!r:.60}, must return numbers or None")

    try:
        finite = math.isfinite(value) and abs(value) <= LARGEST
    except OverflowError:
        finite = False

    if not finite:
        raise RewardError(f"returned {value!r:.60}, must return finite numbers or None")
    return float(value)


def _tensor(scores: list[float | None]) -> Tensor:
    return torch.tensor([math.nan if s is None else s for s in scores], dtype=torch.float32)
