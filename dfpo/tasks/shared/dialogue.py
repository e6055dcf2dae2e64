"""A booking told over several turns, in one of which the party grows.

Prompt   `dialogue #1 people 2 7 #2 day friday #3 people more 1 8 #4 day monday ?`
Answer   `#1 people set 2 7 #2 day set friday #3 people more units 7 + 8 + 0 = 1 5 ;
          tens 2 + 1 + 1 = 0 4 #4 day new monday so people 4 5 day monday food none`
Slips    a carry is forgotten. A correction is ignored, `#4 day keep friday`, half as often.
"""

import random
from dataclasses import dataclass

from dfpo.tasks.dialogue import SLOTS as ALL_SLOTS
from dfpo.tasks.dialogue import extract, verify
from dfpo.tasks.shared.columns import CARRY, OWN, add_numbers, carries, has_carry, spoken
from dfpo.tasks.shared.columns import WORDS as SKILL

__all__ = ["WORDS", "extract", "generate", "prompt", "slips", "solve", "verify"]

TURNS = {"id": (4,), "ood": (5, 6)}  # numbers of turns a split draws from
LARGEST = 99  # people, after they have grown
MARKS = tuple(f"#{turn}" for turn in range(1, max(TURNS["ood"]) + 1))
SLOTS = {slot: ALL_SLOTS[slot] for slot in ("day", "food")}
VALUES = tuple(value for values in SLOTS.values() for value in values)
ACTIONS = ("set", "new", "keep", "more")
WORDS = (*SKILL, "?", "dialogue", "so", "none", "people", *MARKS, *SLOTS, *VALUES, *ACTIONS)


@dataclass(frozen=True)
class Booking:
    """One (slot, what is said of it) a turn; of people a number, first how many there are and then
    how many more."""

    turns: tuple[tuple[str, str | int], ...]


def generate(rng: random.Random, split: str) -> Booking:
    """Draw four ("id") or five to six ("ood") turns: people, people more, and in the others days
    and foods, each other than the one before."""
    count, carry = rng.choice(TURNS[split]), rng.random() < CARRY
    while True:
        first = rng.randrange(1, LARGEST)
        more = rng.randrange(1, LARGEST - first + 1)
        if has_carry(first, more) == carry:
            break

    people = dict(zip(sorted(rng.sample(range(count), 2)), (first, more), strict=True))
    state: dict[str, str] = {}
    turns: list[tuple[str, str | int]] = []

    for place in range(count):
        if place in people:
            turns.append(("people", people[place]))
            continue
        slot = rng.choice(list(SLOTS))
        state[slot] = rng.choice([value for value in SLOTS[slot] if value != state.get(slot)])
        turns.append((slot, state[slot]))

    return Booking(tuple(turns))


def prompt(question: Booking) -> str:
    """The question as the policy reads it."""
    parts, told = [], False
    for mark, (slot, said) in zip(MARKS, question.turns, strict=False):
        if slot == "people":
            parts.append(f"{mark} people {'more ' if told else ''}{spoken(said)}")
            told = True
        else:
            parts.append(f"{mark} {slot} {said}")
    return f"dialogue {' '.join(parts)} ?"


def solve(question: Booking, rng: random.Random, slip: float = 0.0) -> str:
    """The worked answer; `slip` is the probability of forgetting a carry."""
    state, people, lines = dict.fromkeys(SLOTS, "none"), None, []
    for mark, (slot, said) in zip(MARKS, question.turns, strict=False):
        if slot == "people":
            line, people = _grown(people, said, rng, slip)
        elif state[slot] == "none":
            line, state[slot] = f"set {said}", said
        elif rng.random() < OWN * slip:
            line = f"keep {state[slot]}"
        else:
            line, state[slot] = f"new {said}", said
        lines.append(f"{mark} {slot} {line}")

    result = " ".join(f"{slot} {value}" for slot, value in state.items())
    return f"{' '.join(lines)} so people {spoken(people)} {result}"


def slips(answer: list[str]) -> dict[int, str]:
    """Where the tokens of a canonical answer give room for a slip, and the token it puts there."""
    return carries(answer) | {i: "keep" for i, token in enumerate(answer) if token == "new"}


def _grown(people: int | None, said: int, rng: random.Random, slip: float) -> tuple[str, int]:
    """The line of a turn about people, and how many there are after it."""
    if people is None:
        return f"set {spoken(said)}", said
    working, total = add_numbers(people, said, rng, slip)
    return f"more {working}", total
