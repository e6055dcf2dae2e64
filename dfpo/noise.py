"""What is done to rewards: the noise of a reward model that cannot be trusted.

Noise touches the training reward only; evaluation and the logged clean reward never see it. Every
draw is a function of (seed, step, sample id), so arms compared on one seed meet the same noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dfpo.draws import Stream, uniforms

OUTLIER_SIZE = 10.0
KINDS = ("flip", "fp", "fn", "outliers")


@dataclass(frozen=True)
class Noise:
    """Probabilities per answer.

    For a reward r in [low, high] a flip gives low + high - r. ``false_positives`` flips only
    rewards below the middle, ``false_negatives`` only those above.
    """

    false_positives: float = 0.0
    false_negatives: float = 0.0
    outliers: float = 0.0  # adds +10 or -10 times (high - low), either sign alike


def parse_noise(text: str) -> Noise:
    """Reads "none", "flip=0.3", "fp=0.2,fn=0.1" or "outliers=0.1".

    flip=P is fp=P and fn=P. Raises ValueError naming the part that is wrong.
    """
    if text.strip() == "none":
        return Noise()
    parts: dict[str, float] = {}
    for part in text.split(","):
        kind, equals, number = part.strip().partition("=")
        if kind not in KINDS or not equals:
            raise ValueError(
                f"{part.strip()!r} is no noise, must be none or KIND=P with KIND one of "
                f"{', '.join(KINDS)}"
            )
        if kind in parts:
            raise ValueError(f"{kind} is given twice in {text!r}")
        try:
            parts[kind] = float(number)
        except ValueError:
            raise ValueError(f"{kind}={number} is no number, must be in [0, 1]") from None
        if not 0.0 <= parts[kind] <= 1.0:
            raise ValueError(f"{kind}={number} is out of range, must be in [0, 1]")
    if "flip" in parts and ("fp" in parts or "fn" in parts):
        raise ValueError(f"{text!r} gives flip beside fp or fn, must give one or the other")
    flip = parts.get("flip", 0.0)
    return Noise(parts.get("fp", flip), parts.get("fn", flip), parts.get("outliers", 0.0))


def corrupt(
    noise: Noise,
    rewards: Tensor,  # [B]
    sample_ids: Tensor,  # [B]
    *,
    seed: int,
    step: int,
    low: float,
    high: float,
) -> Tensor:  # [B]
    """The rewards that training sees."""
    draws = uniforms(seed, Stream.NOISE, step, sample_ids, 3)
    positive = rewards > (low + high) / 2
    rate = torch.where(positive, noise.false_negatives, noise.false_positives)
    noisy = torch.where(draws[:, 0] < rate, low + high - rewards, rewards)
    size = OUTLIER_SIZE * (high - low) * torch.where(draws[:, 2] < 0.5, -1.0, 1.0)
    return torch.where(draws[:, 1] < noise.outliers, noisy + size, noisy)
