"""A physical quantity from a product and a term that is added to it, with its unit.

Prompt   `science time 3 origin 1 9 velocity 8 find position ?`
Answer   `position = velocity * time + origin ; 8 * 3 = 2 4 ; units 4 + 9 + 0 = 1 3 ;
          tens 2 + 1 + 1 = 0 4 ; position = 4 3 metres` (on one line)
Slips    a carry is forgotten. The term is left out, half as often.
"""

import random
from dataclasses import dataclass

from dfpo.tasks.science import LARGEST_ID_PRODUCT, extract, verify
from dfpo.tasks.shared.columns import CARRY, OWN, add_numbers, carries, has_carry, spoken
from dfpo.tasks.shared.columns import WORDS as SKILL

__all__ = ["WORDS", "extract", "generate", "prompt", "slips", "solve", "verify"]

LARGEST = 99  # result


@dataclass(frozen=True)
class Formula:
    """`target = left * right + term`, measured in `unit`."""

    target: str
    left: str
    right: str
    term: str
    unit: str


FORMULAS = (
    Formula("velocity", "acceleration", "time", "start", "m/s"),
    Formula("position", "velocity", "time", "origin", "metres"),
    Formula("charge", "current", "time", "stored", "coulombs"),
    Formula("energy", "power", "time", "supplied", "joules"),
    Formula("pressure", "density", "depth", "air", "pascals"),
    Formula("amount", "concentration", "volume", "added", "moles"),
)
NAMES = tuple(
    dict.fromkeys(name for f in FORMULAS for name in (f.target, f.left, f.right, f.term, f.unit))
)
WORDS = (*SKILL, "*", "?", "science", "find", *NAMES)


@dataclass(frozen=True)
class Measurement:
    """A formula, the values of its inputs, and the order in which they are given."""

    formula: Formula
    left: int
    right: int
    term: int
    order: tuple[str, ...]  # names of the inputs


def generate(rng: random.Random, split: str) -> Measurement:
    """Draw factors of 2 to 9, the product at most 30 ("id") or above ("ood"), and a term of two
    digits with which the result is below 100."""
    formula, carry = rng.choice(FORMULAS), rng.random() < CARRY
    while True:
        left, right = rng.randrange(2, 10), rng.randrange(2, 10)
        term = rng.randrange(1, LARGEST - left * right + 1)
        inside = left * right <= LARGEST_ID_PRODUCT
        if inside == (split == "id") and has_carry(left * right, term) == carry:
            break

    order = [formula.left, formula.right, formula.term]
    rng.shuffle(order)
    return Measurement(formula, left, right, term, tuple(order))


def prompt(question: Measurement) -> str:
    """The question as the policy reads it."""
    formula = question.formula
    values = {
        formula.left: str(question.left),
        formula.right: str(question.right),
        formula.term: spoken(question.term),
    }
    givens = " ".join(f"{name} {values[name]}" for name in question.order)
    return f"science {givens} find {formula.target} ?"


def solve(question: Measurement, rng: random.Random, slip: float = 0.0) -> str:
    """The worked answer; `slip` is the probability of forgetting a carry."""
    formula, product = question.formula, question.left * question.right
    rule = f"{formula.target} = {formula.left} * {formula.right}"
    steps, result = [f"{question.left} * {question.right} = {spoken(product)}"], product

    if rng.random() >= OWN * slip:
        rule += f" + {formula.term}"
        working, result = add_numbers(product, question.term, rng, slip)
        steps.append(working)

    return " ; ".join([rule, *steps, f"{formula.target} = {spoken(result)} {formula.unit}"])


def slips(answer: list[str]) -> dict[int, str]:
    """Where the tokens of a canonical answer give room for a slip, and the token it puts there."""
    return carries(answer) | {5: ";"}  # position = velocity * time + origin
