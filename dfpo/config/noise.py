"""The words of ``noise``: the table of what may be done to rewards.

``dfpo.rewards.noise`` does it, in the order of the table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dfpo.config.tables import Choice

PER = ("rollout", "prompt")


@dataclass(frozen=True)
class NoiseKind(Choice):
    """A row: a Choice and what the number behind "KIND=" must be."""

    low: float = 0.0
    high: float = 1.0
    must_be: str = "a number in [0, 1]"

    def read(self, kind: str, text: str) -> float:
        """The number, of the type of ``low``. Raises ValueError."""
        try:
            number = type(self.low)(text)
        except ValueError:
            raise ValueError(f"{kind}={text} must be {self.must_be}") from None
        if not self.low <= number <= self.high:
            raise ValueError(f"{kind}={text} is out of range, must be {self.must_be}")
        return number


# What replaces the label stands first: errors are made on labels.
NOISES: dict[str, NoiseKind] = {
    "vote": NoiseKind(
        "the majority of so many answers of the first policy takes the place of the truth",
        "dfpo.rewards.noise:vote",
        low=1, high=1024, must_be="a number of answers in [1, 1024]",
    ),
    "flip": NoiseKind("the reward is mirrored with this probability", "dfpo.rewards.noise:flip"),
    "fp": NoiseKind(
        "a reward below the middle of the range is mirrored with this probability",
        "dfpo.rewards.noise:false_positive",
    ),
    "fn": NoiseKind(
        "a reward above the middle of the range is mirrored with this probability",
        "dfpo.rewards.noise:false_negative",
    ),
    "length": NoiseKind(
        "labels of this accuracy whose errors favour longer answers",
        "dfpo.rewards.noise:length_bias",
        low=0.5, must_be="an accuracy in [0.5, 1]",
    ),
    "outliers": NoiseKind(
        "ten ranges are added or taken off with this probability", "dfpo.rewards.noise:outliers"
    ),
    "heavy": NoiseKind(
        "Student's t with 2 degrees of freedom, times so many ranges, is added",
        "dfpo.rewards.noise:heavy",
        high=1e6, must_be="a scale in [0, 1e6]",
    ),
    "missing": NoiseKind(
        "there is no reward with this probability", "dfpo.rewards.noise:missing"
    ),
}  # fmt: skip
PER_DOC = "one draw per rollout (answer), or one per prompt and run"


@dataclass(frozen=True)
class Noise:
    """What happens to rewards; false where nothing does."""

    levels: dict[str, float] = field(default_factory=dict)  # kind -> its number
    per: str = "rollout"  # one draw per "rollout" (answer), or one per "prompt" and run

    def __bool__(self) -> bool:
        return bool(self.levels)

    @property
    def vote(self) -> int:
        """Answers of the first policy whose majority replaces the truth; 0 is none."""
        return int(self.levels.get("vote", 0))


def parse_noise(text: str) -> Noise:
    """Reads "none", or parts such as "flip=0.3", "fp=0.2", "vote=16" and "per=prompt", joined by
    commas. Raises ValueError naming the part that is wrong.
    """
    if text.strip() == "none":
        return Noise()
    parts: dict[str, Any] = {}
    for part in text.split(","):
        kind, equals, value = (word.strip() for word in part.partition("="))
        if not equals or kind not in (*NOISES, "per"):
            raise ValueError(
                f"{part.strip()!r} is no noise, must be none or KIND=VALUE with KIND one of "
                f"{', '.join(NOISES)}, per"
            )
        if kind in parts:
            raise ValueError(f"{kind} is given twice in {text!r}")
        parts[kind] = _per(value) if kind == "per" else NOISES[kind].read(kind, value)

    _check_together(text, parts)
    per = parts.pop("per", "rollout")
    return Noise({kind: parts[kind] for kind in NOISES if kind in parts}, per)


def _per(value: str) -> str:
    if value not in PER:
        raise ValueError(f"per={value} must be one of {', '.join(PER)}")
    return value


def _check_together(text: str, parts: dict[str, Any]) -> None:
    if "flip" in parts and ("fp" in parts or "fn" in parts):
        raise ValueError(f"{text!r} gives flip beside fp or fn, must give one or the other")
    if "length" in parts and parts.keys() & {"flip", "fp", "fn"}:
        raise ValueError(f"{text!r} gives length beside flips, must give one or the other")
    if parts.get("per") == "prompt" and not parts.keys() - {"per", "vote"}:
        raise ValueError(f"{text!r} gives per=prompt alone, must say of what, as in flip=0.3")
