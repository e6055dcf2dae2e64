"""quantile_huber_loss beside the pairwise formula, eager and compiled."""

from __future__ import annotations

import pytest
import torch
from cases import QUANTILES, pairwise_quantile_huber

from dfpo_kernels import quantile_huber_loss, reference


def with_gradient(function, quantiles, targets, **options):
    loss = function(quantiles, targets, **options)
    return loss.detach(), *torch.autograd.grad(loss.sum(), quantiles)


def make_rows(rows, count, samples):
    generator = torch.Generator().manual_seed(0)
    quantiles = torch.randn(rows, count, generator=generator).requires_grad_()
    return quantiles, torch.randn(rows, samples, generator=generator)


@pytest.mark.parametrize("size", QUANTILES, ids=str)
def bench_quantile_huber_loss(race, size):
    quantiles, targets = make_rows(*size)
    providers = {"dfpo": quantile_huber_loss, "eager": pairwise_quantile_huber}
    if size == QUANTILES[0]:  # another compilation for each size would take half a minute
        providers["compile"] = torch.compile(pairwise_quantile_huber, dynamic=False)
    race(
        "quantile_huber_loss + backward", "R{} Q{} Q'{}".format(*size),
        {
            name: lambda f=f: with_gradient(f, quantiles, targets, kappa=0.05)
            for name, f in providers.items()
        },
        with_gradient(
            reference.quantile_huber_loss,
            quantiles.detach().double().requires_grad_(), targets.double(), kappa=0.05,
        ),
    )  # fmt: skip


def bench_sb3_contrib(race):
    size = (1024, 64, 64)
    quantiles, targets = make_rows(*size)
    options = {"kappa": 1.0, "quantile_reduction": "sum"}
    race(
        "quantile_huber_loss, kappa 1, sum", "R{} Q{} Q'{}".format(*size),
        {
            "dfpo": lambda: with_gradient(quantile_huber_loss, quantiles, targets, **options),
            "sb3-contrib": lambda: with_gradient(
                pairwise_quantile_huber, quantiles, targets, **options
            ),
        },
        with_gradient(
            reference.quantile_huber_loss,
            quantiles.detach().double().requires_grad_(), targets.double(), **options,
        ),
    )  # fmt: skip
