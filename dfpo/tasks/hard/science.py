"""A physical quantity from a product and two more terms, with its unit.

Prompt   `science push 2 mass 8 friction 4 acceleration 3 find force ?`
Answer   `force = mass * acceleration - friction + push ; 8 * 3 = 2 4 ; 2 4 - 4 = 2 0 ;
          2 0 + 2 = 2 2 ; force = 2 2 newtons` (on one line)
Slips    the first term has the wrong sign: invited where it is given before the left factor.
         The second term is left out: invited where it is the first or the last given.
"""

import random
from dataclasses import dataclass

from dfpo.tasks.science import LARGEST_ID_PRODUCT, extract, verify

__all__ = ["WORDS", "extract", "generate", "prompt", "slips", "solve", "verify"]

SELDOM = 0.5  # how much rarer a slip is where nothing invites it


@dataclass(frozen=True)
class Formula:
    """`target = left * right signs[0] first signs[1] second`, measured in `unit`."""

    target: str
    left: str
    right: str
    signs: str
    first: str
    second: str
    unit: str


FORMULAS = (
    Formula("velocity", "acceleration", "time", "+-", "start", "drag", "m/s"),
    Formula("force", "mass", "acceleration", "-+", "friction", "push", "newtons"),
    Formula("charge", "current", "time", "++", "stored", "supplied", "coulombs"),
    Formula("position", "velocity", "time", "+-", "origin", "recoil", "metres"),
    Formula("energy", "power", "time", "--", "losses", "leak", "joules"),
    Formula("work", "force", "distance", "-+", "heat", "gain", "joules"),
    Formula("voltage", "current", "resistance", "+-", "offset", "drop", "volts"),
    Formula("pressure", "density", "depth", "++", "air", "load", "pascals"),
    Formula("amount", "concentration", "volume", "-+", "spilled", "added", "moles"),
    Formula("cells", "rate", "days", "--", "deaths", "removed", "units"),
)
NAMES = tuple(
    dict.fromkeys(
        name for f in FORMULAS for name in (f.target, f.left, f.right, f.first, f.second, f.unit)
    )
)
WORDS = (*"0123456789", "+", "-", "*", "=", ";", "?", "science", "find", *NAMES)


@dataclass(frozen=True)
class Measurement:
    """A formula, the values of its inputs, and the order in which they are given."""

    formula: Formula
    left: int
    right: int
    first: int
    second: int
    order: tuple[str, ...]  # names of the inputs


def generate(rng: random.Random, split: str) -> Measurement:
    """Draw factors of 2 to 9, the product at most 30 ("id") or above ("ood"), and two terms.

    The terms are 1 to 9 and smaller together than the product, so every result is positive.
    """
    formula = rng.choice(FORMULAS)
    while True:
        left, right = rng.randrange(2, 10), rng.randrange(2, 10)
        if (left * right <= LARGEST_ID_PRODUCT) == (split == "id"):
            break

    first = rng.randrange(1, min(10, left * right - 1))
    second = rng.randrange(1, min(10, left * right - first))
    order = [formula.left, formula.right, formula.first, formula.second]
    rng.shuffle(order)
    return Measurement(formula, left, right, first, second, tuple(order))


def prompt(question: Measurement) -> str:
    """The question as the policy reads it."""
    formula = question.formula
    values = {
        formula.left: question.left,
        formula.right: question.right,
        formula.first: question.first,
        formula.second: question.second,
    }

    givens = " ".join(f"{name} {values[name]}" for name in question.order)
    return f"science {givens} find {formula.target} ?"


def solve(question: Measurement, rng: random.Random, slip: float = 0.0) -> str:
    """The worked answer; `slip` is the probability of a slip where the context invites it."""
    formula, order = question.formula, question.order
    product, (sign, second_sign) = question.left * question.right, formula.signs
    early = order.index(formula.first) < order.index(formula.left)
    if rng.random() < (slip if early else SELDOM * slip):
        sign = "-" if sign == "+" else "+"
    outer = formula.second in (order[0], order[-1])
    dropped = rng.random() < (slip if outer else SELDOM * slip)
    terms = [(sign, formula.first, question.first), (second_sign, formula.second, question.second)]
    rule = f"{formula.target} = {formula.left} * {formula.right}"
    steps, result = [f"{question.left} * {question.right} = {_digits(product)}"], product

    for symbol, name, value in terms[:1] if dropped else terms:
        rule += f" {symbol} {name}"
        total = result + value if symbol == "+" else result - value
        steps.append(f"{_digits(result)} {symbol} {value} = {_digits(total)}")
        result = total

    return " ; ".join([rule, *steps, f"{formula.target} = {_digits(result)} {formula.unit}"])


def slips(answer: list[str]) -> dict[int, str]:
    """Where the tokens of a canonical answer give room for a slip, and the token it puts there."""
    sign, second = 5, 7  # force = mass * acceleration - friction + push
    return {sign: "+" if answer[sign] == "-" else "-", second: ";"}


def _digits(number: int) -> str:
    return f"{number // 10} {number % 10}"
