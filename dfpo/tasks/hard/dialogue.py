"""A booking told over several turns, with corrections, cancellations and increases.

Prompt   `dialogue #1 people 3 #2 day friday #3 people more 2 #4 day none #5 stars 4 ?`
Answer   `#1 people set 3 #2 day set friday #3 people more 3 + 2 = 5 #4 day drop friday
          #5 stars set 4 so people 5 stars 4 day none food none` (on one line)
Slips    a correction is ignored, `#3 people keep 3`: invited where the slot was not the last one
         spoken of. A cancellation is ignored, `#4 day keep friday`: invited where it takes back
         words. An increase is taken for the new value, `#3 people new 2`: invited where it is
         not smaller than the old one.
"""

import random
from dataclasses import dataclass

from dfpo.tasks.dialogue import SLOTS, VALUES, extract, verify

__all__ = ["WORDS", "extract", "generate", "prompt", "slips", "solve", "verify"]

TURNS = {"id": (5,), "ood": (6, 7)}  # numbers of turns a split draws from
CHANGE = 0.5  # probability that a turn changes a slot although another is still free
CANCELLATION = 0.25  # share of the changes that take the slot back
INCREASE = 0.5  # share of the other changes of numbers that add to them
SELDOM = 0.5  # how much rarer a slip is where nothing invites it
LARGEST = 9
MARKS = tuple(f"#{turn}" for turn in range(1, max(TURNS["ood"]) + 1))
ACTIONS = ("set", "new", "drop", "more", "keep")
WORDS = ("?", "dialogue", "so", "none", "+", "=", *MARKS, *SLOTS, *VALUES, *ACTIONS)


@dataclass(frozen=True)
class Booking:
    """One (slot, what is said of it) a turn: a value, `none`, or `more 2`."""

    turns: tuple[tuple[str, str], ...]


def generate(rng: random.Random, split: str) -> Booking:
    """Draw five ("id") or six to seven ("ood") turns; each one changes the state of its slot."""
    state: dict[str, str] = {}
    turns = []
    for _ in range(rng.choice(TURNS[split])):
        free = [slot for slot in SLOTS if slot not in state]
        filled = [slot for slot, value in state.items() if value != "none"]
        change = bool(filled) and (not free or rng.random() < CHANGE)
        slot = rng.choice(filled if change else free or list(SLOTS))
        old = state.get(slot, "none")
        if change and rng.random() < CANCELLATION:
            said = state[slot] = "none"
        elif change and old.isdigit() and int(old) < LARGEST and rng.random() < INCREASE:
            amount = rng.randrange(1, LARGEST - int(old) + 1)
            said, state[slot] = f"more {amount}", str(int(old) + amount)
        else:
            said = state[slot] = rng.choice([value for value in SLOTS[slot] if value != old])
        turns.append((slot, said))

    return Booking(tuple(turns))


def prompt(question: Booking) -> str:
    """The question as the policy reads it."""
    turns = zip(MARKS, question.turns, strict=False)
    return f"dialogue {' '.join(f'{mark} {slot} {said}' for mark, (slot, said) in turns)} ?"


def solve(question: Booking, rng: random.Random, slip: float = 0.0) -> str:
    """The worked answer; `slip` is the probability of a slip where the context invites it."""
    state: dict[str, str] = {}
    lines, last = [], None
    for mark, (slot, said) in zip(MARKS, question.turns, strict=False):
        old = state.get(slot, "none")
        line, state[slot] = _turn(old, said)
        if old != "none":
            slipped = rng.random() < (slip if _invites(old, said, slot == last) else SELDOM * slip)
            if slipped:
                state[slot] = said.split()[-1] if said.startswith("more") else old
                line = f"{'new' if said.startswith('more') else 'keep'} {state[slot]}"
        lines.append(f"{mark} {slot} {line}")
        last = slot

    result = " ".join(f"{slot} {state.get(slot, 'none')}" for slot in SLOTS)
    return f"{' '.join(lines)} so {result}"


def slips(answer: list[str]) -> dict[int, str]:
    """Where the tokens of a canonical answer give room for a slip, and the token it puts there."""
    instead = {"new": "keep", "drop": "keep", "more": "new"}
    return {i: instead[token] for i, token in enumerate(answer) if token in instead}


def _turn(old: str, said: str) -> tuple[str, str]:
    """The line of a turn about a slot that is `old`, and the slot's value after it."""
    if said.startswith("more"):
        amount = said.split()[-1]
        if old == "none":
            return f"set {amount}", amount
        # An earlier slip may have left more than the booking can grow by.
        total = str(min(LARGEST, int(old) + int(amount)))
        return f"more {old} + {amount} = {total}", total

    if old == "none":
        return f"set {said}", said
    return (f"drop {old}", said) if said == "none" else (f"new {said}", said)


def _invites(old: str, said: str, just_spoken_of: bool) -> bool:
    if said.startswith("more"):
        return int(said.split()[-1]) >= int(old)
    return not old.isdigit() if said == "none" else not just_spoken_of
