"""Column addition with its carries, the skill that the domains have in common.

    units 9 + 9 + 0 = 1 8 ; tens 1 + 4 + 1 = 0 6

Slip: a carry of 1 is written, and used, as 0.
"""

import random
from collections.abc import Sequence

COLUMNS = ("units", "tens", "hundreds", "thousands")
OWN = 0.5  # how much rarer the slip is that a domain has for itself
CARRY = 0.75  # share of the sums of two digits that have a carry
WORDS = (*"0123456789", "+", "=", ";", *COLUMNS)


def add(
    first: Sequence[int], second: Sequence[int], rng: random.Random, slip: float
) -> tuple[str, list[int]]:
    """The working, and the digits of the sum from the units on, the last carry among them. Both
    numbers are digits from the units on, as many of one as of the other; a carry is forgotten with
    probability ``slip``."""
    lines, digits, carry = [], [], 0
    for column, a, b in zip(COLUMNS, first, second, strict=False):
        if carry and rng.random() < slip:
            carry = 0
        total = a + b + carry
        lines.append(f"{column} {a} + {b} + {carry} = {total // 10} {total % 10}")
        carry = total // 10
        digits.append(total % 10)

    return " ; ".join(lines), [*digits, carry]


def carries(answer: list[str]) -> dict[int, str]:
    """Where a canonical answer uses a carry of 1, and the token that stands there where it is
    forgotten."""
    # tens 1 + 4 + 1 =
    places = (i + 5 for i, token in enumerate(answer) if token in COLUMNS)
    return {i: "0" for i in places if answer[i - 1 : i + 2] == ["+", "1", "="]}


def add_numbers(first: int, second: int, rng: random.Random, slip: float) -> tuple[str, int]:
    """``add`` of two numbers whose sum is below 100: the working, and what comes of it."""
    digits = ((number % 10, number // 10) for number in (first, second))
    working, (units, tens, _) = add(*digits, rng, slip)
    return working, 10 * tens + units


def has_carry(first: int, second: int) -> bool:
    return first % 10 + second % 10 >= 10


def spoken(number: int) -> str:
    """Two digits, tens first, as prompts and results have them."""
    return f"{number // 10} {number % 10}"
