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

from dfpo.config.draws import Stream, uniforms
from dfpo.config.noise import Noise

OUTLIER_SIZE = 10.0
DRAWS = 5  # per answer: flip, outlier, its sign, heavy tail, missing


@dataclass(frozen=True)
class Answers:
    """What noise may look at beside the rewards."""

    sample_ids: Tensor  # [B] int64
    prompt_ids: Tensor  # [B] int64, of `prompt_id`
    lengths: Tensor  # [B], tokens
    domains: Sequence[str]  # B
    votes: Tensor | None = None  # [B], 1 where the answer is the vote's, 0 where not, NaN: no vote


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
