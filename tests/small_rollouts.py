"""A rollout of four answers and an estimate of its values, for tests of what follows from them."""

from __future__ import annotations

import torch

from dfpo.method.targets import Estimate
from dfpo.rewards.functions import Scored
from dfpo.rollout.collect import Rollout
from dfpo.rollout.policy import Samples

LENGTHS = (5, 3, 1, 5)
T, Q = 5, 7


def make_rollout(rewards=(1.0, 0.0, 1.0, 0.5), truncated=(False,) * 4):
    mask = torch.arange(T) < torch.tensor(LENGTHS).unsqueeze(-1)
    samples = Samples(torch.zeros(4, 9), torch.ones(4, 9), mask, torch.tensor(truncated))
    scores = torch.tensor(rewards)
    zeros = torch.zeros(4, T)
    scored = Scored(scores, {}, 0, 0, None)
    return Rollout(
        scored=scored, rows=[{}] * 4,
        completions=[""] * 4, lengths=list(LENGTHS), samples=samples,
        sample_ids=torch.arange(4) + 40, groups=torch.tensor([0, 0, 1, 1]),
        clean_rewards=scores, rewards=scores, old_logprobs=zeros, ref_logprobs=zeros, entropy=zeros,
    )  # fmt: skip


def make_estimate(seed=0):
    generator = torch.Generator().manual_seed(seed)
    quantiles = torch.rand(4, T, Q, generator=generator)
    return Estimate(quantiles, torch.rand(4, Q, generator=generator), None, None)
