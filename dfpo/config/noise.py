"""The words of ``noise``: the table of what may be done to rewards.

``dfpo.rewards.noise`` does it, in the order of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dfpo.config.tables import Choice

PER = ("rollout", "prompt", "kind")
SIZES = ("fixed", "answer_length", "prompt_length")
REST = "*"  # of a mixture: all answers that no other part names
Level = float | tuple[float, float]  # one number, or a range from which each prompt draws its own


@dataclass(frozen=True)
class NoiseKind(Choice):
    """A row: a Choice and what the number behind "KIND=" must be."""

    low: float = 0.0
    high: float = 1.0
    must_be: str = "a number in [0, 1]"
    sized: bool = False  # whether the number is a size, which a prompt or a length may change
    leaves: bool = False  # whether it takes rewards out of their range
    hides: bool = False  # whether the range is then unknown to who learns from them

    def read(self, kind: str, text: str) -> Level:
        """The number, of the type of ``low``, or a range LOW..HIGH of sizes. Raises ValueError."""
        if self.sized and ".." in text:
            low, high = (self._number(kind, part) for part in text.split("..", 1))
            if not 0 < low < high:
                raise ValueError(f"{kind}={text} must be a range LOW..HIGH with 0 < LOW < HIGH")
            return low, high
        return self._number(kind, text)

    def _number(self, kind: str, text: str) -> float:
        try:
            number = type(self.low)(text)
        except ValueError:
            raise ValueError(f"{kind}={text} must be {self.must_be}") from None
        if not self.low <= number <= self.high:
            raise ValueError(f"{kind}={text} is out of range, must be {self.must_be}")
        return number


# What replaces the label stands first: errors are made on labels. What changes the scale of all
# rewards stands before what is added to them.
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
    "scale": NoiseKind(
        "the reward is multiplied by this factor", "dfpo.rewards.noise:scale",
        low=1e-6, high=1e6, must_be="a factor in [1e-6, 1e6]", leaves=True, hides=True,
    ),
    "offset": NoiseKind(
        "so many ranges are added to every reward", "dfpo.rewards.noise:offset",
        low=-1e6, high=1e6, must_be="a number in [-1e6, 1e6]", leaves=True, hides=True,
    ),
    "outliers": NoiseKind(
        "ten ranges, or outlier_size, are added or taken off with this probability",
        "dfpo.rewards.noise:outliers",
        leaves=True,
    ),
    "heavy": NoiseKind(
        "Student's t with 2 degrees of freedom, times so many ranges, is added",
        "dfpo.rewards.noise:heavy",
        high=1e6, must_be="a scale in [0, 1e6]", sized=True, leaves=True,
    ),
    "normal": NoiseKind(
        "a standard normal number, times so many ranges, is added", "dfpo.rewards.noise:normal",
        high=1e6, must_be="a scale in [0, 1e6]", sized=True, leaves=True, hides=True,
    ),
    "missing": NoiseKind(
        "there is no reward with this probability", "dfpo.rewards.noise:missing"
    ),
}  # fmt: skip
OUTLIER_SIZE = NoiseKind("", low=0.0, high=1e6, must_be="a number of ranges in [0, 1e6]")
# Parts that say how, not what.
WORDS = {
    "per": "one draw per rollout (answer), per prompt and run, or per kind of answer and run",
    "size": "heavy and normal are fixed, or in proportion to answer_length (as given at 32 tokens) "
    "or prompt_length (at 32 characters)",
    "outlier_size": "size of outliers, in ranges; default 10",
}
MIXTURE_DOC = "DOMAIN:...;DOMAIN:...: a noise of its own for each; by=COLUMN; first: for its values"


@dataclass(frozen=True)
class Noise:
    """What happens to rewards; false where nothing does."""

    levels: dict[str, Level] = field(default_factory=dict)  # kind -> its number
    per: str = "rollout"  # what shares a draw: one of PER
    size: str = "fixed"  # what sizes are in proportion to: one of SIZES
    outlier_size: float = 10.0  # in ranges
    mixture: dict[str, Noise] = field(default_factory=dict)  # value of a column -> its own noise
    by: str = "domain"  # that column

    def __bool__(self) -> bool:
        return bool(self.levels) or any(self.mixture.values())

    @property
    def vote(self) -> int:
        """Answers of the first policy whose majority replaces the truth; 0 is none."""
        return int(self.levels.get("vote", 0))

    @property
    def flip_rates(self) -> tuple[float, float]:
        """How often a low reward is told as a high one, and a high one as a low one."""
        flip = self.levels.get("flip", 0.0)
        return self.levels.get("fp", flip), self.levels.get("fn", flip)

    @property
    def hides_range(self) -> bool:
        """Whether the range of told rewards is unknown to who learns from them."""
        if self.mixture:
            kinds = {kind for part in self.mixture.values() for kind in part.levels}
            return any(NOISES[kind].leaves for kind in kinds)
        drawn = any(isinstance(level, tuple) for level in self.levels.values())
        return drawn or any(NOISES[kind].hides for kind in self.levels) or self.size != "fixed"

    def of(self, value: str) -> Noise:
        """What happens to answers with this value of the column."""
        return self.mixture.get(value, self.mixture.get(REST, Noise()))


def parse_noise(text: str) -> Noise:
    """Reads "none", or parts such as "flip=0.3", "normal=0.1..2" and "per=prompt", joined by
    commas; or a mixture "math:flip=0.2;science:scale=5,heavy=2;*:none", of the values of another
    column after "by=COLUMN;". Raises ValueError naming the part that is wrong.
    """
    if ":" in text or ";" in text:
        return _parse_mixture(text)
    return _parse_parts(text)


def noise_text(tree: Mapping[str, Any]) -> str:
    """The words of a noise that YAML holds as a mapping, nested for a mixture."""
    if not any(isinstance(value, Mapping) for value in tree.values()):
        return ",".join(f"{name}={value}" for name, value in tree.items())
    parts = [f"by={tree['by']}"] if "by" in tree else []
    for value, own in tree.items():
        if value != "by":
            parts.append(f"{value}:{noise_text(own) if isinstance(own, Mapping) else own}")
    return ";".join(parts)


def _parse_mixture(text: str) -> Noise:
    clauses = [clause.strip() for clause in text.split(";") if clause.strip()]
    by = "domain"
    if clauses and clauses[0].startswith("by="):
        by = clauses.pop(0).removeprefix("by=").strip()
    mixture: dict[str, Noise] = {}

    for clause in clauses:
        value, colon, parts = (word.strip() for word in clause.rpartition(":"))
        if not colon or not value:
            raise ValueError(f"{clause!r} is no part of a mixture, must be VALUE:KIND=NUMBER,...")
        if value in mixture:
            raise ValueError(f"{value} is given twice in {text!r}")
        mixture[value] = _parse_parts(parts)
        if mixture[value].vote:
            raise ValueError(f"{clause!r} has vote, which must stand for all answers alone")

    if not mixture or not by:
        raise ValueError(f"{text!r} is no mixture, must be [by=COLUMN;]VALUE:KIND=NUMBER,...;...")
    return Noise(mixture=mixture, by=by)


def _parse_parts(text: str) -> Noise:
    if text.strip() == "none":
        return Noise()
    parts: dict[str, Any] = {}
    for part in text.split(","):
        kind, equals, value = (word.strip() for word in part.partition("="))
        if not equals or kind not in (*NOISES, *WORDS):
            raise ValueError(
                f"{part.strip()!r} is no noise, must be none or KIND=VALUE with KIND one of "
                f"{', '.join((*NOISES, *WORDS))}"
            )
        if kind in parts:
            raise ValueError(f"{kind} is given twice in {text!r}")
        parts[kind] = _read(kind, value)

    _check_together(text, parts)
    words = {word: parts[word] for word in WORDS if word in parts}
    return Noise({kind: parts[kind] for kind in NOISES if kind in parts}, **words)


def _read(kind: str, value: str) -> Any:
    if kind == "outlier_size":
        return OUTLIER_SIZE.read(kind, value)
    if kind in NOISES:
        return NOISES[kind].read(kind, value)
    known = {"per": PER, "size": SIZES}[kind]
    if value not in known:
        raise ValueError(f"{kind}={value} must be one of {', '.join(known)}")
    return value


def _check_together(text: str, parts: dict[str, Any]) -> None:
    if "flip" in parts and ("fp" in parts or "fn" in parts):
        raise ValueError(f"{text!r} gives flip beside fp or fn, must give one or the other")
    if "length" in parts and parts.keys() & {"flip", "fp", "fn"}:
        raise ValueError(f"{text!r} gives length beside flips, must give one or the other")
    if parts.get("per", "rollout") != "rollout" and not parts.keys() - {*WORDS, "vote"}:
        raise ValueError(
            f"{text!r} gives per={parts['per']} alone, must say of what, as in flip=0.3"
        )
    if "size" in parts and not any(NOISES[kind].sized for kind in parts.keys() & NOISES.keys()):
        raise ValueError(f"{text!r} gives size alone, must say of what, as in normal=0.3")
    if "outlier_size" in parts and "outliers" not in parts:
        raise ValueError(f"{text!r} gives outlier_size without outliers=PROBABILITY")
