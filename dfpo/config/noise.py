"""The words of ``noise``: what may be done to rewards. ``dfpo.rewards.noise`` does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

PER = ("rollout", "prompt")
# kind -> lowest, highest, what it must be
KINDS = {
    "flip": (0.0, 1.0, "a number in [0, 1]"),
    "fp": (0.0, 1.0, "a number in [0, 1]"),
    "fn": (0.0, 1.0, "a number in [0, 1]"),
    "length": (0.5, 1.0, "an accuracy in [0.5, 1]"),
    "vote": (1, 1024, "a number of answers in [1, 1024]"),
    "outliers": (0.0, 1.0, "a number in [0, 1]"),
    "heavy": (0.0, 1e6, "a scale in [0, 1e6]"),
    "missing": (0.0, 1.0, "a number in [0, 1]"),
}


@dataclass(frozen=True)
class Noise:
    """What happens to a reward r in [low, high]: first the vote, then flips (low + high - r), then
    outliers, heavy tails and missing labels.
    """

    false_positives: float = 0.0  # probability of a flip below the middle of the range
    false_negatives: float = 0.0  # probability of a flip above it
    outliers: float = 0.0  # probability of adding +10 or -10 times (high - low), either sign alike
    vote: int = 0  # answers of the first policy whose majority replaces the truth; 0 is none
    length: float = 1.0  # accuracy of a reward model whose flips favour longer answers
    heavy: float = 0.0  # scale, in units of (high - low), of Student's t with 2 degrees of freedom
    missing: float = 0.0  # probability that there is no reward
    per: str = "rollout"  # one draw per "rollout" (answer), or one per "prompt" and run


def parse_noise(text: str) -> Noise:
    """Reads "none", or parts such as "flip=0.3", "fp=0.2", "vote=16" and "per=prompt", joined by
    commas. flip=P is fp=P and fn=P. Raises ValueError naming the part that is wrong.
    """
    if text.strip() == "none":
        return Noise()
    parts: dict[str, Any] = {}
    for part in text.split(","):
        kind, equals, value = (word.strip() for word in part.partition("="))
        if not equals or kind not in (*KINDS, "per"):
            raise ValueError(
                f"{part.strip()!r} is no noise, must be none or KIND=VALUE with KIND one of "
                f"{', '.join(KINDS)}, per"
            )
        if kind in parts:
            raise ValueError(f"{kind} is given twice in {text!r}")
        parts[kind] = _value(kind, value)
    _check_together(text, parts)
    flip = parts.pop("flip", 0.0)
    return Noise(parts.pop("fp", flip), parts.pop("fn", flip), **parts)


def _value(kind: str, value: str) -> Any:
    if kind == "per":
        if value not in PER:
            raise ValueError(f"per={value} must be one of {', '.join(PER)}")
        return value
    low, high, expected = KINDS[kind]
    try:
        number = type(low)(value)
    except ValueError:
        raise ValueError(f"{kind}={value} must be {expected}") from None
    if not low <= number <= high:
        raise ValueError(f"{kind}={value} is out of range, must be {expected}")
    return number


def _check_together(text: str, parts: dict[str, Any]) -> None:
    if "flip" in parts and ("fp" in parts or "fn" in parts):
        raise ValueError(f"{text!r} gives flip beside fp or fn, must give one or the other")
    if "length" in parts and parts.keys() & {"flip", "fp", "fn"}:
        raise ValueError(f"{text!r} gives length beside flips, must give one or the other")
    if parts.get("per") == "prompt" and not parts.keys() - {"per", "vote"}:
        raise ValueError(f"{text!r} gives per=prompt alone, must say of what, as in flip=0.3")
