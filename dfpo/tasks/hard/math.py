"""Column addition and subtraction with the carry or borrow shown.

Prompt   `math units 3 tens 1 hundreds 4 thousands 8 - units 9 tens 4 hundreds 1 thousands 2 ?`
Answer   `units 3 - 9 - 0 = 1 4 ; tens 1 - 4 - 1 = 1 6 ; hundreds 4 - 1 - 1 = 0 2 ;
          thousands 8 - 2 - 0 = 0 6 so 0 6 2 6 4` (on one line)
Slips    a carry or borrow of 1 is written, and used, as 0: invited by an odd upper digit in
         additions, by an even one in subtractions.
         The smaller digit is taken from the larger, `units 9 - 3 - 0 = 0 6`: invited where
         nothing was borrowed.
"""

import random
from dataclasses import dataclass

from dfpo.tasks.math import extract, verify

__all__ = ["WORDS", "extract", "generate", "prompt", "slips", "solve", "verify"]

COLUMNS = ("units", "tens", "hundreds", "thousands", "myriads")
WIDTHS = {"id": 4, "ood": 5}  # columns of a split
SELDOM = 0.5  # how much rarer a slip is where nothing invites it
WORDS = (*"0123456789", "+", "-", "=", ";", "?", "math", "so", *COLUMNS)


@dataclass(frozen=True)
class Sum:
    """Digits of the two numbers, units first; the first is not below the second in a difference."""

    first: tuple[int, ...]
    sign: str
    second: tuple[int, ...]


def generate(rng: random.Random, split: str) -> Sum:
    """Draw two numbers of four ("id") or five ("ood") columns; leading zeros are allowed."""
    width, sign = WIDTHS[split], rng.choice("+-")
    numbers = [tuple(rng.randrange(10) for _ in range(width)) for _ in range(2)]
    if sign == "-":
        numbers.sort(key=lambda digits: digits[::-1], reverse=True)
    return Sum(numbers[0], sign, numbers[1])


def prompt(question: Sum) -> str:
    """The question as the policy reads it."""
    first, second = (
        " ".join(f"{column} {digit}" for column, digit in zip(COLUMNS, number, strict=False))
        for number in (question.first, question.second)
    )
    return f"math {first} {question.sign} {second} ?"


def solve(question: Sum, rng: random.Random, slip: float = 0.0) -> str:
    """The worked answer; `slip` is the probability of a slip where the context invites it."""
    sign, lines, digits, carry = question.sign, [], [], 0
    for column, a, b in zip(COLUMNS, question.first, question.second, strict=False):
        invited = (a % 2 == 1) == (sign == "+")
        if carry and rng.random() < (slip if invited else SELDOM * slip):
            carry = 0
        if sign == "-" and a < b and rng.random() < (SELDOM * slip if carry else slip):
            a, b = b, a
        total = a + b + carry if sign == "+" else a - b - carry
        lines.append(f"{column} {a} {sign} {b} {sign} {carry} = {abs(total // 10)} {total % 10}")
        carry, digit = abs(total // 10), total % 10
        digits.append(digit)

    result = " ".join(str(digit) for digit in (carry, *reversed(digits)))
    return f"{' ; '.join(lines)} so {result}"


def slips(answer: list[str]) -> dict[int, str]:
    """Where the tokens of a canonical answer give room for a slip, and the token it puts there."""
    derived = {}
    for equals in (i for i, token in enumerate(answer) if token == "="):
        # a - b - carry =
        first, sign, second, _, carry = answer[equals - 5 : equals]
        if carry == "1":
            derived[equals - 1] = "0"
        if sign == "-" and first < second:
            derived[equals - 5] = second

    return derived
