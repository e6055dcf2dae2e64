"""The words of ``risk``: risk measures by name. ``dfpo.method.risk`` computes them."""

from __future__ import annotations

from typing import NamedTuple

# parameter, its default and what it must be
TAIL = (0.25, "in (0, 1]", lambda x: 0.0 < x <= 1.0)
KINDS = {
    "neutral": None,
    "cvar-lower": TAIL,  # mean of the lowest fraction TAIL of returns
    "cvar-upper": TAIL,  # mean of the highest fraction TAIL
    # g(tau) = Phi(Phi^-1(tau) + SHIFT): above 0 weighs low returns more, below 0 high ones
    "wang": (0.75, "a number in [-5, 5]", lambda x: -5.0 <= x <= 5.0),
}


class Risk(NamedTuple):
    kind: str
    parameter: float | None


def parse_risk(text: str) -> Risk:
    """Reads "neutral", "cvar-lower", "cvar-lower=0.1", "wang=-0.5"; ValueError says what is
    wrong."""
    kind, equals, number = text.strip().partition("=")
    if kind not in KINDS or (equals and KINDS[kind] is None):
        raise ValueError(
            f"is {text!r}, must be neutral, or one of cvar-lower, cvar-upper, wang with =NUMBER "
            "if wanted"
        )

    if KINDS[kind] is None:
        return Risk(kind, None)
    default, words, allowed = KINDS[kind]
    try:
        parameter = float(number) if equals else default
    except ValueError:
        raise ValueError(f"{text}: {number!r} must be {words}") from None

    if not allowed(parameter):
        raise ValueError(f"{text}: {number} must be {words}")
    return Risk(kind, parameter)
