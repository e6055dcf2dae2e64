"""Sums, column by column.

Prompt   `math units 9 tens 1 hundreds 4 + units 9 tens 4 hundreds 1 ?`
Answer   `units 9 + 9 + 0 = 1 8 ; tens 1 + 4 + 1 = 0 6 ; hundreds 4 + 1 + 0 = 0 5 so 0 5 6 8`
Slips    a carry is forgotten. The digits of the result are read from the wrong end, `so 8 6 5 0`,
         half as often.
"""

import random
from dataclasses import dataclass

from dfpo.tasks.math import extract, verify
from dfpo.tasks.shared.columns import COLUMNS, OWN, add, carries
from dfpo.tasks.shared.columns import WORDS as SKILL

__all__ = ["WORDS", "extract", "generate", "prompt", "slips", "solve", "verify"]

WIDTHS = {"id": 3, "ood": 4}  # columns of a split
WORDS = (*SKILL, "?", "math", "so")


@dataclass(frozen=True)
class Sum:
    """Digits of the two numbers, units first."""

    first: tuple[int, ...]
    second: tuple[int, ...]


def generate(rng: random.Random, split: str) -> Sum:
    """Draw two numbers of three ("id") or four ("ood") columns; leading zeros are allowed."""
    first, second = (tuple(rng.randrange(10) for _ in range(WIDTHS[split])) for _ in range(2))
    return Sum(first, second)


def prompt(question: Sum) -> str:
    """The question as the policy reads it."""
    numbers = (
        " ".join(f"{column} {digit}" for column, digit in zip(COLUMNS, number, strict=False))
        for number in (question.first, question.second)
    )
    return f"math {' + '.join(numbers)} ?"


def solve(question: Sum, rng: random.Random, slip: float = 0.0) -> str:
    """The worked answer; `slip` is the probability of forgetting a carry."""
    working, digits = add(question.first, question.second, rng, slip)
    if rng.random() >= OWN * slip:
        digits = digits[::-1]
    return f"{working} so {' '.join(map(str, digits))}"


def slips(answer: list[str]) -> dict[int, str]:
    """Where the tokens of a canonical answer give room for a slip, and the token it puts there."""
    start = answer.index("so") + 1
    result = answer[start:]
    turned = [i for i, (a, b) in enumerate(zip(result, result[::-1], strict=True)) if a != b]
    return carries(answer) | {start + i: result[::-1][i] for i in turned[:1]}
