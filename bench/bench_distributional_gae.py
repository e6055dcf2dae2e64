"""distributional_gae and lambda_mixture_targets beside the loops of RLHF trainers."""

from __future__ import annotations

import pytest
import torch
from cases import SCANS, gae_carry, gae_convolution, gae_zero, half_of

from dfpo_kernels import distributional_gae, lambda_mixture_targets, reference

GAMMA, LAM = 1.0, 0.95
SETTINGS = {"gamma": GAMMA, "lam": LAM}


def make_batch(size):
    batch, length, quantiles = size
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(batch, length, generator=generator)
    values = torch.randn(batch, length, quantiles, generator=generator)
    mask = torch.rand(batch, length, generator=generator) < 0.9
    return rewards, values, mask


def bytes_moved(rewards, values, mask, outputs):
    """Each input read once and each output, of the size of values, written once."""
    inputs = sum(x.numel() * x.element_size() for x in (rewards, values, mask))
    return inputs + outputs * values.numel() * values.element_size()


# The references loop over tokens in float64, so they check a few rows.
FEW = 4


def few_rows(result):
    """Those of a tensor, or of advantages and targets."""
    if isinstance(result, torch.Tensor):
        return result[:FEW]
    return tuple(x[:FEW] for x in result)


def exact(op, rewards, values, mask, **settings):
    return op(rewards[:FEW].double(), values[:FEW].double(), mask[:FEW], **settings)


def name_of(size):
    return "B{} T{} Q{}".format(*size)


@pytest.mark.parametrize("size", SCANS, ids=str)
def bench_distributional_gae(race, size):
    rewards, values, mask = make_batch(size)
    moved = bytes_moved(rewards, values, mask, 2)
    block = half_of(moved)
    race(
        "distributional_gae", name_of(size),
        {
            "dfpo": lambda: distributional_gae(rewards, values, mask, **SETTINGS),
            "verl": lambda: gae_carry(rewards, values, mask, GAMMA, LAM),
        },
        exact(reference.distributional_gae, rewards, values, mask, **SETTINGS),
        part=few_rows,
        floors={"clone": block.clone},
        moved=moved,
    )  # fmt: skip


def bench_zero_mode(race):
    rewards, values, mask = make_batch(SCANS[1])
    settings = SETTINGS | {"mask_mode": "zero"}
    race(
        "distributional_gae zero", name_of(SCANS[1]),
        {
            "dfpo": lambda: distributional_gae(rewards, values, mask, **settings),
            "OpenRLHF": lambda: gae_zero(rewards, values, mask, GAMMA, LAM),
        },
        exact(reference.distributional_gae, rewards, values, mask, **settings),
        part=few_rows,
        moved=bytes_moved(rewards, values, mask, 2),
    )  # fmt: skip


def bench_none_mode(race):
    rewards, values, mask = make_batch((64, 1024, 1))
    settings = SETTINGS | {"mask_mode": "none"}
    race(
        "distributional_gae none", name_of((64, 1024, 1)),
        {
            "dfpo": lambda: distributional_gae(rewards, values, mask, **settings),
            "torchrl": lambda: gae_convolution(rewards, values, GAMMA, LAM),
        },
        exact(reference.distributional_gae, rewards, values, mask, **settings),
        part=few_rows,
        moved=bytes_moved(rewards, values, mask, 2),
    )  # fmt: skip


@pytest.mark.parametrize("size", SCANS[:2], ids=str)
def bench_lambda_mixture_targets(race, size):
    rewards, values, mask = make_batch(size)
    settings = SETTINGS | {"seed": 7}
    moved = bytes_moved(rewards, values, mask, 1)
    block = half_of(moved)
    calls = {"dfpo": lambda: lambda_mixture_targets(rewards, values, mask, **settings)}
    if size == SCANS[0]:  # at the other size the reference takes a quarter of a minute
        calls["reference"] = lambda: reference.lambda_mixture_targets(
            rewards, values, mask, **settings
        )
    race(
        "lambda_mixture_targets", name_of(size),
        calls,
        exact(reference.lambda_mixture_targets, rewards, values, mask, **settings),
        part=few_rows,
        floors={"clone": block.clone},
        moved=moved,
    )  # fmt: skip
