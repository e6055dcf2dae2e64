"""distributional_gae and lambda_mixture_targets against the Python loop of RLHF trainers."""

from __future__ import annotations

import pytest
import torch
from cases import SCAN_SIZES, gae_loop

from dfpo_kernels import distributional_gae, lambda_mixture_targets, reference

GAMMA, LAM = 1.0, 0.95


def make_batch(size):
    batch, length, quantiles = size
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(batch, length, generator=generator)
    values = torch.randn(batch, length, quantiles, generator=generator)
    mask = torch.rand(batch, length, generator=generator) < 0.9
    return rewards, values, mask


@pytest.mark.parametrize("provider", ["dfpo", "loop", "clone"])
@pytest.mark.parametrize("size", SCAN_SIZES, ids=str)
def bench_distributional_gae(race, size, provider):
    rewards, values, mask = make_batch(size)
    keep = mask.float().unsqueeze(-1)
    exact = reference.distributional_gae(
        rewards.double(), values.double(), mask, gamma=GAMMA, lam=LAM
    )
    calls = {
        "dfpo": lambda: distributional_gae(rewards, values, mask, gamma=GAMMA, lam=LAM),
        "loop": lambda: gae_loop(rewards.unsqueeze(-1), values, keep, GAMMA, LAM),
        # The floor: reading the values once and writing two outputs.
        "clone": lambda: (values.clone(), values.clone()),
    }
    expected = calls["clone"]() if provider == "clone" else exact
    race("distributional_gae", "B{} T{} Q{}".format(*size), provider, calls[provider], expected)


@pytest.mark.parametrize("provider", ["dfpo", "reference", "clone"])
@pytest.mark.parametrize("size", SCAN_SIZES[:1], ids=str)
def bench_lambda_mixture_targets(race, size, provider):
    rewards, values, mask = make_batch(size)
    settings = {"gamma": GAMMA, "lam": LAM, "seed": 7}
    calls = {
        "dfpo": lambda: lambda_mixture_targets(rewards, values, mask, **settings),
        "reference": lambda: reference.lambda_mixture_targets(rewards, values, mask, **settings),
        "clone": lambda: values.clone(),
    }
    exact = reference.lambda_mixture_targets(rewards.double(), values.double(), mask, **settings)
    race(
        "lambda_mixture_targets", "B{} T{} Q{}".format(*size), provider, calls[provider],
        values if provider == "clone" else exact,
    )  # fmt: skip
