"""Three verifiable domains with shown working: math, science and dialogue.

Texts are space-separated tokens, every digit its own token. A domain is a module with
`generate`, `prompt`, `solve`, `slips`, `verify` and `WORDS`. Each has an in-domain ("id") and an
out-of-domain ("ood") split whose ranges do not overlap, and one systematic slip that a sloppy
demonstrator makes, so that a policy trained on it has something to unlearn.
"""

import random
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from zlib import crc32

from dfpo.tasks import dialogue, math, science

DOMAINS: dict[str, ModuleType] = {"math": math, "science": science, "dialogue": dialogue}
SPLITS = ("id", "ood")
STREAMS = ("train", "eval")
VOCABULARY: tuple[str, ...] = tuple(
    dict.fromkeys(word for domain in DOMAINS.values() for word in domain.WORDS)
)


@dataclass(frozen=True)
class Problem:
    """A prompt and its canonical worked answer."""

    domain: str
    prompt: str
    answer: str


def problem(seed: int, stream: str, domain: str, split: str, index: int) -> Problem:
    """The problem at `index` of a stream: a pure function of its arguments.

    No prompt is in both the "train" and the "eval" stream, whatever their seeds; within a stream
    prompts may repeat. Raises ValueError for an unknown stream, domain or split.
    """
    question, rng = _draw(seed, stream, domain, split, index)
    return _problem(domain, question, rng)


def demonstration(
    seed: int, domain: str, split: str, index: int, slip: float
) -> tuple[Problem, str]:
    """A problem of the "train" stream and the answer of a demonstrator.

    The demonstrator makes the domain's slip with probability `slip` at each opportunity.
    """
    question, rng = _draw(seed, "train", domain, split, index)
    return _problem(domain, question, rng), DOMAINS[domain].solve(question, rng, slip)


def reward(
    prompts: list[str],
    completions: list[str],
    completion_ids: list[list[int]],
    domain: list[str],
    answer: list[str],
    **_: Any,
) -> list[float]:
    """1.0 for each completion whose final answer is right, else 0.0.

    The signature is that of TRL's reward functions: keyword arguments, dataset columns as lists.
    """
    rows = zip(completions, domain, answer, strict=True)
    return [float(DOMAINS[name].verify(completion, gold)) for completion, name, gold in rows]


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


def _draw(seed: int, stream: str, domain: str, split: str, index: int) -> tuple[Any, random.Random]:
    _check("stream", stream, STREAMS)
    _check("domain", domain, tuple(DOMAINS))
    _check("split", split, SPLITS)
    # Seeding with a string hashes it, so neighbouring seeds and indices are unrelated.
    rng = random.Random(f"{seed} {stream} {domain} {split} {index}")
    while True:
        question = DOMAINS[domain].generate(rng, split)
        held_out = crc32(DOMAINS[domain].prompt(question).encode()) % 5 == 0
        if held_out == (stream == "eval"):
            return question, rng


def _problem(domain: str, question: Any, rng: random.Random) -> Problem:
    module = DOMAINS[domain]
    return Problem(domain, module.prompt(question), module.solve(question, rng))


def _check(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
