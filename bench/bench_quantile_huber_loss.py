"""quantile_huber_loss against the pairwise formula, eager and compiled."""

from __future__ import annotations

import pytest
import torch
from cases import QUANTILE_SIZES, pairwise_quantile_huber

from dfpo_kernels import quantile_huber_loss, reference

KAPPA = 0.05
COMPILED = torch.compile(pairwise_quantile_huber, dynamic=False)


@pytest.mark.parametrize("provider", ["dfpo", "eager", "compile"])
@pytest.mark.parametrize("size", QUANTILE_SIZES, ids=str)
def bench_quantile_huber_loss(race, size, provider):
    rows, count, samples = size
    generator = torch.Generator().manual_seed(0)
    quantiles = torch.randn(rows, count, generator=generator).requires_grad_()
    targets = torch.randn(rows, samples, generator=generator)

    def run(function, quantiles, targets):
        loss = function(quantiles, targets)
        return loss.detach(), *torch.autograd.grad(loss.sum(), quantiles)

    calls = {
        "dfpo": lambda q, y: quantile_huber_loss(q, y, kappa=KAPPA),
        "eager": lambda q, y: pairwise_quantile_huber(q, y, KAPPA),
        "compile": lambda q, y: COMPILED(q, y, KAPPA),
    }
    expected = run(
        lambda q, y: reference.quantile_huber_loss(q, y, kappa=KAPPA),
        quantiles.detach().double().requires_grad_(),
        targets.double(),
    )
    race(
        "quantile_huber_loss forward+backward", f"R{rows} Q{count} Q'{samples}", provider,
        lambda: run(calls[provider], quantiles, targets), expected, rounds=3,
    )  # fmt: skip
