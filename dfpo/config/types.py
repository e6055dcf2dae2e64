"""What flows through a step, in the order in which it is made.

    Row -> Answers -> Scored -> Rollout -> Estimate -> Targets

All are frozen and built by name. Shapes: B answers, P prompt tokens (padded left), T answer tokens
(padded right), Q quantiles.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dfpo_kernels import FlowField
from dfpo_kernels.nn import PathTargets

Row = dict[str, Any]  # "prompt" (text, or a list of chat messages) and the reward's columns
Prompt = str | list[dict[str, str]]  # text, or chat messages


def row_index(rows: list[int], device: torch.device) -> Tensor:
    """``rows`` on the device, for which the host does not wait."""
    index = torch.tensor(rows, dtype=torch.int64)
    if device.type != "cuda":
        return index.to(device)
    return index.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class Samples:
    """The tokens of a batch of prompts and of their answers."""

    input_ids: Tensor  # [B, P + T]
    attention_mask: Tensor  # [B, P + T], 1 on prompt and answer tokens
    mask: Tensor  # [B, T] bool, answer tokens that the policy chose, the end token included
    truncated: Tensor  # [B] bool, no end token within the limit
    # [B, T], of the engine that drew them; None where the policy itself drew
    logprobs: Tensor | None = None

    @property
    def prompt_width(self) -> int:
        """Columns before the answers'."""
        return self.input_ids.shape[1] - self.mask.shape[1]

    @property
    def tokens(self) -> Tensor:  # [B, T]
        """The answers' part of ``input_ids``."""
        return self.input_ids[:, self.prompt_width :]

    @property
    def present(self) -> Tensor:  # [B, T], 1 on answer tokens, a tool's included
        return self.attention_mask[:, self.prompt_width :]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each answer; the host waits for the device once to know them."""
        return self.present.sum(-1).tolist()

    @cached_property
    def counts(self) -> list[int]:
        """Tokens of each answer that the mask counts, likewise."""
        return self.mask.sum(-1).tolist()

    @cached_property
    def prompt_lengths(self) -> list[int]:
        """Tokens of each prompt, likewise."""
        return self.attention_mask[:, : self.prompt_width].sum(-1).tolist()

    @property
    def is_cut(self) -> bool:
        """Whether no column is padding to all."""
        width = max(self.prompt_lengths, default=0), max(self.lengths, default=0)
        return width == (self.prompt_width, self.mask.shape[1])

    def select(self, rows: Tensor | list[int]) -> Samples:
        tensors = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Samples(**{name: x if x is None else x[rows] for name, x in tensors.items()})

    def part(self, rows: list[int]) -> Samples:
        """The answers in ``rows`` without the columns that are padding to all of them."""
        known = {
            name: [getattr(self, name)[i] for i in rows]
            for name in ("prompt_lengths", "lengths", "counts")
        }
        prompt, answer = (max(known[name], default=0) for name in ("prompt_lengths", "lengths"))
        index = row_index(rows, self.mask.device)
        columns = slice(self.prompt_width - prompt, self.prompt_width + answer)
        part = Samples(
            input_ids=self.input_ids[index, columns],
            attention_mask=self.attention_mask[index, columns],
            mask=self.mask[index, :answer],
            truncated=self.truncated[index],
            logprobs=None if self.logprobs is None else self.logprobs[index, :answer],
        )

        # Known already: nothing need ask the device again.
        vars(part).update(known)
        return part


@dataclass(frozen=True)
class Answers:
    """The policy's answers to some rows, before anything is said of them."""

    rows: list[Row]  # B rows, a prompt repeated for each of its answers
    texts: list[str]  # without special tokens
    token_ids: list[list[int]]
    sample_ids: Tensor  # [B] int64, unique over the run: what draws are a function of

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each answer, as the host knows them."""
        return [len(ids) for ids in self.token_ids]

    def select(self, rows: Tensor) -> Answers:  # [N] int64, on the host
        places = rows.tolist()
        return Answers(
            rows=[self.rows[i] for i in places],
            texts=[self.texts[i] for i in places],
            token_ids=[self.token_ids[i] for i in places],
            sample_ids=self.sample_ids[rows.to(self.sample_ids.device)],
        )


@dataclass(frozen=True)
class Scored:
    """One number per answer; NaN where there is none."""

    values: Tensor  # [B] float32, NaN where unscored or invalid
    parts: dict[str, Tensor]  # name of each of several rewards -> [B]
    unscored: int  # answers that every reward returned None for
    invalid: int  # answers for which a reward failed
    problem: str | None  # the first failure, in one line
    logged: dict[str, float] = dataclasses.field(default_factory=dict)  # by the functions

    def without(self, missing: Tensor) -> Scored:  # [B] bool
        """The same with no score where there is none after noise."""
        lost = int((missing & self.values.isfinite()).sum())
        values = self.values.masked_fill(missing, math.nan)
        return dataclasses.replace(self, values=values, unscored=self.unscored + lost)


@dataclass(frozen=True)
class LeftOut:
    """N answers of a step that training has no reward for, of which nothing more is computed."""

    answers: Answers
    truncated: Tensor  # [N] bool
    groups: Tensor  # [N] int64, which of the step's prompts is answered
    clean_rewards: Tensor  # [N] float32, NaN where noise did not take it: there was none


@dataclass(frozen=True)
class Rollout:
    """One step's answers that have a reward, and what is known of them before any value is
    estimated. Answers without a reward are ``left_out``; ``scored`` counts them."""

    scored: Scored  # of all answers
    answers: Answers
    samples: Samples
    groups: Tensor  # [B] int64, which of the step's prompts is answered
    clean_rewards: Tensor  # [B]
    rewards: Tensor  # [B], what training sees
    ref_logprobs: Tensor  # [B, T]
    # Of the policy that drew the answers. None until the update, where its own look tells them.
    old_logprobs: Tensor | None  # [B, T]
    entropy: Tensor | None  # [B, T]
    left_out: LeftOut | None = None  # None: all have a reward


@dataclass(frozen=True)
class Estimate:
    """A critic's prediction: values of the states before each answer token, and of the state
    after the last one."""

    quantiles: Tensor  # [B, T, Q], in units of return
    final: Tensor  # [B, Q]
    base: Tensor | None = None  # [B, T, Q], base noise where targets are paired with it by index
    field: FlowField | None = None  # [B, T, ...], frozen field, for path-coupled matching


@dataclass(frozen=True)
class CriticTargets:
    """What a critic learns from."""

    quantiles: Tensor  # [B, T, Q], what it regresses to
    mean: Tensor | None = None  # [B, T], the expected return at target.target_lam
    spread: Tensor | None = None  # [B, T], standard deviation of the estimate
    base: Tensor | None = None  # [B, T, Q]
    path: PathTargets | None = None  # [B, T]
    draws: Tensor | None = None  # [B, T, Q + 1] uniforms, where the loss draws at random
    weight: Tensor | None = None  # [B, T], of each token's flow matching

    def part(self, rows: list[int], length: int) -> CriticTargets:
        """The first ``length`` tokens of the answers in ``rows``."""

        def cut(value: Tensor) -> Tensor:
            return value[index, :length]

        index = row_index(rows, self.quantiles.device)
        return CriticTargets(**{
            name: None if value is None else
            value.map(cut) if isinstance(value, PathTargets) else cut(value)
            for name, value in vars(self).items()
        })  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """What the means of a loss divide by. Of a whole minibatch, where the loss is of a part of it:
    then the parts' losses and gradients add up to the minibatch's."""

    tokens: int
    answers: int

    @staticmethod
    def of(tokens: list[int]) -> Counts:
        """Of the counted tokens of each answer."""
        return Counts(tokens=max(1, sum(tokens)), answers=max(1, len(tokens)))


@dataclass(frozen=True)
class Targets:
    """What one step's update learns from."""

    advantages: Tensor  # [B, T], what the policy's loss takes; 0 off the answer
    raw_advantages: Tensor  # [B, T], before bounds and whitening
    clean_advantages: Tensor  # [B, T], the raw ones had the clean reward been told
    critic: CriticTargets | None = None  # None where there is no critic
    # [B, T], of each token in the policy's loss; None: 1, where the policy itself drew
    weights: Tensor | None = None
