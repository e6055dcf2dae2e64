"""A booking told over several turns, with corrections and cancellations.

Prompt   `dialogue #1 people 1 #2 people 5 #3 day thursday #4 day monday ?`
Answer   `#1 people set 1 #2 people new 5 #3 day set thursday #4 day new monday
          so people 5 stars none day monday food none` (on one line)
Slip     a correction or cancellation is ignored: `#2 people keep 1`.
"""

import random
from dataclasses import dataclass

SLOTS = {
    "people": tuple("123456789"),
    "stars": tuple("123456789"),
    "day": ("monday", "tuesday", "wednesday", "thursday", "friday"),
    "food": ("thai", "sushi", "pizza", "vegan"),
}
TURNS = {"id": (4,), "ood": (5, 6)}  # numbers of turns a split draws from
CORRECTION = 0.45  # probability that a turn corrects a slot although another is still free
CANCELLATION = 0.25  # share of the corrections that take the slot back
MARKS = tuple(f"#{turn}" for turn in range(1, max(TURNS["ood"]) + 1))
VALUES = tuple(value for values in SLOTS.values() for value in values)
ACTIONS = ("set", "new", "drop", "keep")
WORDS = ("?", "dialogue", "so", "none", *MARKS, *SLOTS, *VALUES, *ACTIONS)


@dataclass(frozen=True)
class Booking:
    """One (slot, value) a turn; the value `none` cancels the slot."""

    turns: tuple[tuple[str, str], ...]


def generate(rng: random.Random, split: str) -> Booking:
    """Draw four ("id") or five to six ("ood") turns; each one changes the state of its slot."""
    state: dict[str, str] = {}
    turns = []
    for _ in range(rng.choice(TURNS[split])):
        free = [slot for slot in SLOTS if slot not in state]
        filled = [slot for slot, value in state.items() if value != "none"]
        correct = bool(filled) and (not free or rng.random() < CORRECTION)
        slot = rng.choice(filled if correct else free or list(SLOTS))
        if correct and rng.random() < CANCELLATION:
            value = "none"
        else:
            value = rng.choice([value for value in SLOTS[slot] if value != state.get(slot)])
        state[slot] = value
        turns.append((slot, value))

    return Booking(tuple(turns))


def prompt(question: Booking) -> str:
    """The question as the policy reads it."""
    turns = zip(MARKS, question.turns, strict=False)
    return f"dialogue {' '.join(f'{mark} {slot} {value}' for mark, (slot, value) in turns)} ?"


def solve(question: Booking, rng: random.Random, slip: float = 0.0) -> str:
    """The worked answer, each turn about a known slot ignored with probability `slip`."""
    state: dict[str, str] = {}
    lines = []
    for mark, (slot, value) in zip(MARKS, question.turns, strict=False):
        if slot in state and rng.random() < slip:
            lines.append(f"{mark} {slot} keep {state[slot]}")
            continue
        action = "drop" if value == "none" else "new" if slot in state else "set"
        lines.append(f"{mark} {slot} {action} {value}")
        state[slot] = value

    result = " ".join(f"{slot} {state.get(slot, 'none')}" for slot in SLOTS)
    return f"{' '.join(lines)} so {result}"


def slips(answer: list[str]) -> dict[int, str]:
    """Where the tokens of a canonical answer give room for a slip, and the token it puts there."""
    return {i: "keep" for i, token in enumerate(answer) if token in ("new", "drop")}


def extract(completion: str) -> str | None:
    """The slots after the last `so`, None where there are none."""
    words = completion.split()
    if "so" not in words:
        return None
    return " ".join(words[len(words) - words[::-1].index("so") :]) or None


def verify(completion: str, answer: str) -> bool:
    """Whether the slots after the last `so` are those of `answer`."""
    return extract(completion) == extract(answer)
