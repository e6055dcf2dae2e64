"""A rollout of four answers and an estimate of its values, for tests of what follows from them."""

from __future__ import annotations

import torch

from dfpo.config.types import Answers, Estimate, Rollout, Samples, Scored

LENGTHS = (5, 3, 1, 5)
T, Q = 5, 7


def make_rollout(rewards=(1.0, 0.0, 1.0, 0.5), truncated=(False,) * 4):
    mask = torch.arange(T) < torch.tensor(LENGTHS).unsqueeze(-1)
    samples = Samples(
        input_ids=torch.zeros(4, 9),
        attention_mask=torch.cat([torch.ones(4, 4), mask], 1).to(torch.int64),
        mask=mask,
        truncated=torch.tensor(truncated),
    )
    scores = torch.tensor(rewards)
    zeros = torch.zeros(4, T)
    scored = Scored(values=scores, parts={}, unscored=0, invalid=0, problem=None)
    answers = Answers(
        rows=[{}] * 4,
        texts=[""] * 4,
        token_ids=[[0] * length for length in LENGTHS],
        sample_ids=torch.arange(4) + 40,
    )
    return Rollout(
        scored=scored, answers=answers, samples=samples, groups=torch.tensor([0, 0, 1, 1]),
        clean_rewards=scores, rewards=scores, old_logprobs=zeros, ref_logprobs=zeros, entropy=zeros,
    )  # fmt: skip


def make_estimate(seed=0):
    generator = torch.Generator().manual_seed(seed)
    quantiles = torch.rand(4, T, Q, generator=generator)
    return Estimate(quantiles=quantiles, final=torch.rand(4, Q, generator=generator))
