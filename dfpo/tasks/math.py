"""Column addition with the carry shown.

Prompt   `math units 9 tens 1 hundreds 4 + units 9 tens 4 hundreds 1 ?`
Answer   `units 9 + 9 + 0 = 1 8 ; tens 1 + 4 + 1 = 0 6 ; hundreds 4 + 1 + 0 = 0 5 so 0 5 6 8`
Slip     a carry of 1 is written, and added, as 0.
"""

import random
from dataclasses import dataclass
from itertools import pairwise

COLUMNS = ("units", "tens", "hundreds", "thousands")
WIDTHS = {"id": 3, "ood": 4}  # columns a split adds
WORDS = (*"0123456789", "+", "=", ";", "?", "math", "so", *COLUMNS)


@dataclass(frozen=True)
class Addition:
    """Digits of the two numbers, units first."""

    first: tuple[int, ...]
    second: tuple[int, ...]


def generate(rng: random.Random, split: str) -> Addition:
    """Draw two numbers of three ("id") or four ("ood") columns; leading zeros are allowed."""
    width = WIDTHS[split]
    first = tuple(rng.randrange(10) for _ in range(width))
    return Addition(first, tuple(rng.randrange(10) for _ in range(width)))


def prompt(question: Addition) -> str:
    """The question as the policy reads it."""
    first, second = (
        " ".join(f"{column} {digit}" for column, digit in zip(COLUMNS, number, strict=False))
        for number in (question.first, question.second)
    )
    return f"math {first} + {second} ?"


def solve(question: Addition, rng: random.Random, slip: float = 0.0) -> str:
    """The worked answer, each carry of 1 forgotten with probability `slip`."""
    lines, digits, carry = [], [], 0
    for column, a, b in zip(COLUMNS, question.first, question.second, strict=False):
        if carry and rng.random() < slip:
            carry = 0
        total = a + b + carry
        lines.append(f"{column} {a} + {b} + {carry} = {total // 10} {total % 10}")
        carry, digit = divmod(total, 10)
        digits.append(digit)

    result = " ".join(str(digit) for digit in (carry, *reversed(digits)))
    return f"{' ; '.join(lines)} so {result}"


def slips(answer: list[str]) -> dict[int, str]:
    """Where the tokens of a canonical answer give room for a slip, and the token it puts there."""
    # The carry is the term right before the equals sign.
    terms = enumerate(pairwise(answer))
    return {i: "0" for i, (term, after) in terms if (term, after) == ("1", "=")}


def extract(completion: str) -> str | None:
    """The digits after the last `so`, None where no working is shown."""
    words = completion.split()
    if ";" not in words or "so" not in words:
        return None
    return " ".join(words[len(words) - words[::-1].index("so") :]) or None


def verify(completion: str, answer: str) -> bool:
    """Whether some working is shown and the digits after the last `so` are those of `answer`."""
    return extract(completion) == extract(answer)
