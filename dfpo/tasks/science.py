"""A physical quantity from a product and a third term, with its unit.

Prompt   `science mass 8 acceleration 3 friction 4 find force ?`
Answer   `force = mass * acceleration - friction ; 8 * 3 = 2 4 ; 2 4 - 4 = 2 0 ;
          force = 2 0 newtons` (on one line)
Slip     the wrong formula: a loss is added, or a start value is left out.
"""

import random
from dataclasses import dataclass

LARGEST_ID_PRODUCT = 30  # "id" products are at most this, "ood" products are larger


@dataclass(frozen=True)
class Formula:
    """`target = left * right sign term`, measured in `unit`."""

    target: str
    left: str
    right: str
    sign: str
    term: str
    unit: str


FORMULAS = (
    Formula("velocity", "acceleration", "time", "+", "start", "m/s"),
    Formula("force", "mass", "acceleration", "-", "friction", "newtons"),
    Formula("charge", "current", "time", "+", "stored", "coulombs"),
    Formula("position", "velocity", "time", "+", "origin", "metres"),
    Formula("energy", "power", "time", "-", "losses", "joules"),
    Formula("work", "force", "distance", "-", "heat", "joules"),
)
NAMES = tuple(
    dict.fromkeys(
        name
        for formula in FORMULAS
        for name in (formula.target, formula.left, formula.right, formula.term, formula.unit)
    )
)
WORDS = (*"0123456789", "+", "-", "*", "=", ";", "?", "science", "find", *NAMES)


@dataclass(frozen=True)
class Measurement:
    """A formula, the values of its three inputs, and the order in which they are given."""

    formula: Formula
    left: int
    right: int
    term: int
    givens: tuple[str, ...]


def generate(rng: random.Random, split: str) -> Measurement:
    """Draw factors of 2 to 9, the product at most 30 ("id") or above ("ood"), and a term.

    The term is 1 to 9 and smaller than the product, so the result is positive.
    """
    formula = rng.choice(FORMULAS)
    while True:
        left, right = rng.randrange(2, 10), rng.randrange(2, 10)
        if (left * right <= LARGEST_ID_PRODUCT) == (split == "id"):
            break

    term = rng.randrange(1, min(10, left * right))
    givens = [f"{formula.left} {left}", f"{formula.right} {right}", f"{formula.term} {term}"]
    rng.shuffle(givens)
    return Measurement(formula, left, right, term, tuple(givens))


def prompt(question: Measurement) -> str:
    """The question as the policy reads it."""
    return f"science {' '.join(question.givens)} find {question.formula.target} ?"


def solve(question: Measurement, rng: random.Random, slip: float = 0.0) -> str:
    """The worked answer, by the wrong formula with probability `slip`."""
    formula, left, right, term = question.formula, question.left, question.right, question.term
    product, sign = left * right, formula.sign
    steps = [f"{left} * {right} = {_digits(product)}"]
    rule = f"{formula.target} = {formula.left} * {formula.right}"
    slipped = rng.random() < slip

    if slipped and sign == "+":
        result = product
    else:
        sign = "+" if slipped else sign
        result = product + term if sign == "+" else product - term
        rule += f" {sign} {formula.term}"
        steps.append(f"{_digits(product)} {sign} {term} = {_digits(result)}")

    return " ; ".join([rule, *steps, f"{formula.target} = {_digits(result)} {formula.unit}"])


def slips(answer: list[str]) -> dict[int, str]:
    """Where the tokens of a canonical answer give room for a slip, and the token it puts there."""
    sign = 5  # force = mass * acceleration - friction
    return {sign: "+" if answer[sign] == "-" else ";"}


def extract(completion: str) -> str | None:
    """The last line (name, value, unit), None where no working stands before it."""
    words = completion.split()
    if ";" not in words:
        return None
    return " ".join(words[len(words) - words[::-1].index(";") :]) or None


def verify(completion: str, answer: str) -> bool:
    """Whether some working is shown and the last line (name, value, unit) is that of `answer`."""
    return extract(completion) == extract(answer)


def _digits(number: int) -> str:
    return f"{number // 10} {number % 10}"
