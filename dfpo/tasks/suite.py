"""A suite: verifiable domains with one vocabulary, and the problems drawn from them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any
from zlib import crc32

SPLITS = ("id", "ood")
STREAMS = ("train", "eval")


@dataclass(frozen=True)
class Problem:
    """A prompt and its canonical worked answer."""

    domain: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Suite:
    """Domains by name; each is a module with `generate`, `prompt`, `solve`, `slips`, `verify`,
    `extract` and `WORDS`."""

    name: str
    domains: Mapping[str, ModuleType]

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        words = (word for domain in self.domains.values() for word in domain.WORDS)
        return tuple(dict.fromkeys(words))

    def problem(self, seed: int, stream: str, domain: str, split: str, index: int) -> Problem:
        """The problem at `index` of a stream: a pure function of its arguments.

        No prompt is in both the "train" and the "eval" stream, whatever their seeds; within a
        stream prompts may repeat. Raises ValueError for an unknown stream, domain or split.
        """
        question, rng = self._draw(seed, stream, domain, split, index)
        return self._problem(domain, question, rng)

    def demonstration(
        self, seed: int, domain: str, split: str, index: int, slip: float
    ) -> tuple[Problem, str]:
        """A problem of the "train" stream and the answer of a demonstrator, who makes the
        domain's slips with probability `slip`, or as the domain's `solve` says."""
        question, rng = self._draw(seed, "train", domain, split, index)
        canonical = self._problem(domain, question, rng)
        return canonical, self.domains[domain].solve(question, rng, slip)

    def reward(
        self,
        prompts: list[str],
        completions: list[str],
        completion_ids: list[list[int]],
        domain: list[str],
        answer: list[str],
        **_: Any,
    ) -> list[float]:
        """1.0 for each completion whose final answer is right, else 0.0.

        The signature is that of TRL's reward functions: keyword arguments, dataset columns as
        lists.
        """
        rows = zip(completions, domain, answer, strict=True)
        return [float(self.domains[name].verify(text, gold)) for text, name, gold in rows]

    def extract(self, completion: str, domain: str) -> str | None:
        """The final answer of a completion, None where it has none."""
        return self.domains[domain].extract(completion)

    def _draw(
        self, seed: int, stream: str, domain: str, split: str, index: int
    ) -> tuple[Any, random.Random]:
        _check("stream", stream, STREAMS)
        _check("domain", domain, tuple(self.domains))
        _check("split", split, SPLITS)
        module = self.domains[domain]
        # Seeding with a string hashes it, so neighbouring seeds and indices are unrelated.
        rng = random.Random(f"{seed} {stream} {domain} {split} {index}")

        while True:
            question = module.generate(rng, split)
            held_out = crc32(module.prompt(question).encode()) % 5 == 0
            if held_out == (stream == "eval"):
                return question, rng

    def _problem(self, domain: str, question: Any, rng: random.Random) -> Problem:
        module = self.domains[domain]
        return Problem(domain, module.prompt(question), module.solve(question, rng))


def slip_position(completion_tokens: list[str], answer_tokens: list[str]) -> int | None:
    """Index of the first token that differs from the canonical answer, None if none does.

    A completion that stops early, or goes on, differs where the shorter of the two ends.
    """
    pairs = zip(completion_tokens, answer_tokens, strict=False)
    for index, (token, canonical) in enumerate(pairs):
        if token != canonical:
            return index
    if len(completion_tokens) == len(answer_tokens):
        return None
    return min(len(completion_tokens), len(answer_tokens))


def _check(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
