"""What is done to rewards: the noise of a reward model that cannot be trusted.

Noise touches the training reward only; evaluation and the logged clean reward never see it. Every
draw is a function of (seed, step, sample id), or of (seed, prompt), so arms compared on one seed
meet the same noise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from dfpo.draws import Stream, uniforms

OUTLIER_SIZE = 10.0
DRAWS = 5  # per answer: flip, outlier, its sign, heavy tail, missing
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


@dataclass(frozen=True)
class Answers:
    """What noise may look at beside the rewards."""

    sample_ids: Tensor  # [B] int64
    prompt_ids: Tensor  # [B] int64, of `prompt_id`
    lengths: Tensor  # [B], tokens
    domains: Sequence[str]  # B
    votes: Tensor | None = None  # [B], 1 where the answer is the vote's, 0 where not, NaN: no vote


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


def corrupt(
    noise: Noise,
    rewards: Tensor,  # [B], NaN where there is none
    answers: Answers,
    *,
    seed: int,
    step: int,
    low: float,
    high: float,
) -> Tensor:  # [B]
    """The rewards that training sees, NaN where there is none."""
    if noise == Noise():
        return rewards
    if noise.per == "prompt":
        draws = uniforms(seed, Stream.PROMPT_NOISE, 0, answers.prompt_ids, DRAWS)
    else:
        draws = uniforms(seed, Stream.NOISE, step, answers.sample_ids, DRAWS)
    if noise.vote:
        label = low + (high - low) * answers.votes
        rewards = torch.where(rewards.isfinite(), label, rewards)
    positive = rewards > (low + high) / 2
    rate = torch.where(positive, noise.false_negatives, noise.false_positives)
    if noise.length < 1:
        rate = _length_bias(noise.length, positive, rewards.isfinite(), answers)
    noisy = torch.where(draws[:, 0] < rate, low + high - rewards, rewards)
    size = OUTLIER_SIZE * (high - low) * torch.where(draws[:, 2] < 0.5, -1.0, 1.0)
    noisy = torch.where(draws[:, 1] < noise.outliers, noisy + size, noisy)
    if noise.heavy:
        noisy = noisy + noise.heavy * (high - low) * student_t2(draws[:, 3])
    return torch.where(draws[:, 4] < noise.missing, torch.nan, noisy)


def _length_bias(
    accuracy: float,
    positive: Tensor,  # [B] bool
    scored: Tensor,  # [B] bool
    answers: Answers,
) -> Tensor:  # [B]
    """Probability of a wrong label: 2 (1 - accuracy) times the share of scored answers of the same
    domain and label that are shorter, or, where the label is positive, longer.

    Those shares have mean 1/2 in each group, ties halved, so the accuracy holds in each.
    """
    rate = torch.zeros(len(positive), device=positive.device)
    for name in dict.fromkeys(answers.domains):
        member = torch.tensor([domain == name for domain in answers.domains], device=rate.device)
        for label in (False, True):
            group = member & scored & (positive == label)
            lengths = answers.lengths[group]
            ordered = lengths.sort().values
            below = torch.searchsorted(ordered, lengths)
            within = torch.searchsorted(ordered, lengths, right=True)
            shorter = (below + within) / (2 * max(1, len(lengths)))
            rate[group] = 1 - shorter if label else shorter
    return 2 * (1 - accuracy) * rate


def student_t2(uniform: Tensor) -> Tensor:
    """Student's t with 2 degrees of freedom by its inverse distribution function,
    (2 u - 1) / sqrt(2 u (1 - u)), u moved to the middle of its 2^-24 cell."""
    u = uniform.double() + 2.0**-25
    return ((2 * u - 1) / (2 * u * (1 - u)).sqrt()).to(uniform.dtype)


def prompt_id(prompt: Any) -> int:
    """A number below 2^32 that stands for a prompt, text or messages, in draws made per prompt."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)
    return crc32(text.encode())
