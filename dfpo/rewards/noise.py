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
from dfpo.config.noise import NOISES, Level, Noise

DRAWS = 6  # per answer, by column: flip, outlier, its sign, heavy tail, missing, normal
FLIP, OUTLIER, SIGN, TAIL, MISSING, NORMAL = range(DRAWS)
# Of the answer in tokens, or of the prompt in characters: where sizes in proportion to it are as
# they are given.
USUAL_LENGTH = 32


@dataclass(frozen=True)
class NoiseInputs:
    """What noise may look at beside the rewards."""

    sample_ids: Tensor  # [B] int64
    prompt_ids: Tensor  # [B] int64, of `prompt_id`
    lengths: Tensor  # [B], tokens
    domains: Sequence[str]  # B
    votes: Tensor | None = None  # [B], 1 where the answer is the vote's, 0 where not, NaN: no vote
    prompt_lengths: Tensor | None = None  # [B], characters
    kinds: Tensor | None = None  # [B] int64, of `kind_id`
    values: Sequence[str] | None = None  # B, of the column that a mixture is by

    def select(self, rows: list[int]) -> NoiseInputs:
        return NoiseInputs(**{
            name: None if value is None else
            value[rows] if isinstance(value, Tensor) else [value[i] for i in rows]
            for name, value in vars(self).items()
        })  # fmt: skip


@dataclass(frozen=True)
class Labels:
    """The rewards before any error is made, and the draws that decide which errors are."""

    rewards: Tensor  # [B], the truth or the vote; NaN where there is none
    draws: Tensor  # [B, DRAWS] uniforms in [0, 1)
    inputs: NoiseInputs
    low: float
    high: float
    outlier_size: float = 10.0  # in ranges

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
    if noise.mixture:
        drawn = {"seed": seed, "step": step, "low": low, "high": high}
        return _corrupt_parts(noise, rewards, inputs, drawn)

    draws = _draws(noise, inputs, seed, step)
    if noise.vote:
        rewards = vote(rewards, noise.vote, Labels(rewards, draws, inputs, low, high))

    labels = Labels(rewards, draws, inputs, low, high, noise.outlier_size)
    for kind, level in noise.levels.items():
        if kind != "vote":
            if NOISES[kind].sized:
                level = _sizes(noise, level, inputs, seed)
            rewards = NOISES[kind].load()(rewards, level, labels)

    return rewards


def _corrupt_parts(
    noise: Noise, rewards: Tensor, inputs: NoiseInputs, drawn: dict[str, Any]
) -> Tensor:  # [B]
    """Each answer by the part of the mixture that its value names."""
    values = inputs.domains if inputs.values is None else inputs.values
    told = rewards.clone()
    for value in dict.fromkeys(values):
        rows = [i for i, own in enumerate(values) if own == value]
        told[rows] = corrupt(noise.of(value), rewards[rows], inputs.select(rows), **drawn)
    return told


def _draws(noise: Noise, inputs: NoiseInputs, seed: int, step: int) -> Tensor:  # [B, DRAWS]
    """Uniforms, one row for all that share a draw."""
    if noise.per == "rollout":
        return uniforms(seed, Stream.NOISE, step, inputs.sample_ids, DRAWS)
    if noise.per == "prompt":
        return uniforms(seed, Stream.PROMPT_NOISE, 0, inputs.prompt_ids, DRAWS)
    return uniforms(seed, Stream.KIND_NOISE, 0, inputs.kinds, DRAWS)


def _sizes(noise: Noise, level: Level, inputs: NoiseInputs, seed: int) -> float | Tensor:  # [B]
    """The size of what is added to each answer: drawn per prompt and run, log-uniform, where the
    level is a range, and in proportion to a length where ``size`` says so."""
    size: float | Tensor
    if isinstance(level, tuple):
        low, high = level
        drawn = uniforms(seed, Stream.NOISE_SIZE, 0, inputs.prompt_ids, 1)[:, 0]
        size = low * (high / low) ** drawn
    else:
        size = level
    if noise.size == "fixed":
        return size
    lengths = inputs.lengths if noise.size == "answer_length" else inputs.prompt_lengths
    return size * lengths / USUAL_LENGTH


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


def scale(rewards: Tensor, factor: float, labels: Labels) -> Tensor:
    return factor * rewards


def offset(rewards: Tensor, ranges: float, labels: Labels) -> Tensor:
    return rewards + ranges * labels.width


def outliers(rewards: Tensor, rate: float, labels: Labels) -> Tensor:
    """So many ranges added or taken off, either sign alike."""
    sign = torch.where(labels.draws[:, SIGN] < 0.5, -1.0, 1.0)
    size = labels.outlier_size * labels.width * sign
    return torch.where(labels.draws[:, OUTLIER] < rate, rewards + size, rewards)


def heavy(rewards: Tensor, size: float | Tensor, labels: Labels) -> Tensor:
    """Student's t with 2 degrees of freedom added, ``size`` in ranges."""
    return rewards + size * labels.width * student_t2(labels.draws[:, TAIL])


def normal(rewards: Tensor, size: float | Tensor, labels: Labels) -> Tensor:
    """A standard normal number added, ``size`` in ranges."""
    # The middle of a uniform's 2^-24 cell, off 0, where the inverse is infinite.
    drawn = torch.special.ndtri(labels.draws[:, NORMAL].double() + 2.0**-25)
    return rewards + size * labels.width * drawn.to(rewards.dtype)


def missing(rewards: Tensor, rate: float, labels: Labels) -> Tensor:
    return torch.where(labels.draws[:, MISSING] < rate, torch.nan, rewards)


def student_t2(uniform: Tensor) -> Tensor:
    """Student's t with 2 degrees of freedom by its inverse distribution function,
    (2 u - 1) / sqrt(2 u (1 - u)), u moved to the middle of its 2^-24 cell."""
    u = uniform.double() + 2.0**-25
    return ((2 * u - 1) / (2 * u * (1 - u)).sqrt()).to(uniform.dtype)


def prompt_id(prompt: Any) -> int:
    """A number below 2^32 that stands for a prompt, text or messages, in draws made per prompt."""
    return crc32(prompt_text(prompt).encode())


def prompt_text(prompt: Any) -> str:
    """A prompt, text or messages, as one text."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)


def kind_id(domain: str, text: str) -> int:
    """A number below 2^32 that stands for the kind of an answer, in draws made per kind: its
    domain, its length by eights of characters, its first and its last character."""
    text = text.strip()
    return crc32(f"{domain}\n{len(text) // 8}\n{text[:1]}\n{text[-1:]}".encode())
