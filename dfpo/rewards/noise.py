"""What is done to rewards: the noise of a reward model that cannot be trusted.

Noise touches the training reward only; evaluation and the logged clean reward never see it. Every
draw is a function of (seed, step, sample id), or of (seed, prompt), so arms compared on one seed
meet the same noise. Each kind is a function (rewards, level, labels) -> rewards with a row in
``dfpo.config.noise``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from dfpo.config.draws import Stream, uniforms
from dfpo.config.noise import NOISES, Noise

OUTLIER_SIZE = 10.0
DRAWS = 5  # per answer, by column: flip, outlier, its sign, heavy tail, missing
FLIP, OUTLIER, SIGN, TAIL, MISSING = range(DRAWS)


@dataclass(frozen=True)
class NoiseInputs:
    """What noise may look at beside the rewards."""

    sample_ids: Tensor  # [B] int64
    prompt_ids: Tensor  # [B] int64, of `prompt_id`
    lengths: Tensor  # [B], tokens
    domains: Sequence[str]  # B
    votes: Tensor | None = None  # [B], 1 where the answer is the vote's, 0 where not, NaN: no vote


@dataclass(frozen=True)
class Labels:
    """The rewards before any error is made, and the draws that decide which errors are."""

    rewards: Tensor  # [B], the truth or the vote; NaN where there is none
    draws: Tensor  # [B, DRAWS] uniforms in [0, 1)
    inputs: NoiseInputs
    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low

    @property
    def positive(self) -> Tensor:  # [B] bool
        return self.rewards > (self.low + self.high) / 2


def corrupt(
    noise: Noise,
    rewards: Tensor,  # [B], NaN where there is none
    inputs: NoiseInputs,
    *,
    seed: int,
    step: int,
    low: float,
    high: float,
) -> Tensor:  # [B]
    """The rewards that training sees, NaN where there is none."""
    if not noise:
        return rewards
    if noise.per == "prompt":
        draws = uniforms(seed, Stream.PROMPT_NOISE, 0, inputs.prompt_ids, DRAWS)
    else:
        draws = uniforms(seed, Stream.NOISE, step, inputs.sample_ids, DRAWS)

    if noise.vote:
        rewards = vote(rewards, noise.vote, Labels(rewards, draws, inputs, low, high))

    labels = Labels(rewards, draws, inputs, low, high)
    for kind, level in noise.levels.items():
        if kind != "vote":
            rewards = NOISES[kind].load()(rewards, level, labels)

    return rewards


def vote(rewards: Tensor, count: int, labels: Labels) -> Tensor:
    """The vote's verdict at the ends of the range; who has no reward gets none."""
    verdict = labels.low + labels.width * labels.inputs.votes
    return torch.where(rewards.isfinite(), verdict, rewards)


def flip(rewards: Tensor, rate: float | Tensor, labels: Labels) -> Tensor:
    """low + high - r, the reward mirrored in its range."""
    hit = labels.draws[:, FLIP] < rate
    return torch.where(hit, labels.low + labels.high - labels.rewards, rewards)


def false_positive(rewards: Tensor, rate: float, labels: Labels) -> Tensor:
    return flip(rewards, torch.where(labels.positive, 0.0, rate), labels)


def false_negative(rewards: Tensor, rate: float, labels: Labels) -> Tensor:
    return flip(rewards, torch.where(labels.positive, rate, 0.0), labels)


def length_bias(rewards: Tensor, accuracy: float, labels: Labels) -> Tensor:
    """Flips with probability 2 (1 - accuracy) times the share of scored answers of the same domain
    and label that are shorter, or, where the label is positive, longer.

    Those shares have mean 1/2 in each group, ties halved, so the accuracy holds in each.
    """
    positive, scored, answers = labels.positive, labels.rewards.isfinite(), labels.inputs
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

    return flip(rewards, 2 * (1 - accuracy) * rate, labels)


def outliers(rewards: Tensor, rate: float, labels: Labels) -> Tensor:
    """Ten ranges added or taken off, either sign alike."""
    sign = torch.where(labels.draws[:, SIGN] < 0.5, -1.0, 1.0)
    size = OUTLIER_SIZE * labels.width * sign
    return torch.where(labels.draws[:, OUTLIER] < rate, rewards + size, rewards)


def heavy(rewards: Tensor, scale: float, labels: Labels) -> Tensor:
    """Student's t with 2 degrees of freedom added, ``scale`` in ranges."""
    return rewards + scale * labels.width * student_t2(labels.draws[:, TAIL])


def missing(rewards: Tensor, rate: float, labels: Labels) -> Tensor:
    return torch.where(labels.draws[:, MISSING] < rate, torch.nan, rewards)


def student_t2(uniform: Tensor) -> Tensor:
    """Student's t with 2 degrees of freedom by its inverse distribution function,
    (2 u - 1) / sqrt(2 u (1 - u)), u moved to the middle of its 2^-24 cell."""
    u = uniform.double() + 2.0**-25
    return ((2 * u - 1) / (2 * u * (1 - u)).sqrt()).to(uniform.dtype)


def prompt_id(prompt: Any) -> int:
    """A number below 2^32 that stands for a prompt, text or messages, in draws made per prompt."""
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)
    return crc32(text.encode())
