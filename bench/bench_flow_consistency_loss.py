"""flow_consistency_loss against eager PyTorch."""

from __future__ import annotations

import pytest
import torch
from cases import FLOW_SIZES, euler, make_field, ridge_velocity

from dfpo_kernels import flow_consistency_loss, reference


def eager(field, base, steps):
    with torch.no_grad():
        displacement = euler(field, base, steps) - base
    return (ridge_velocity(field, base, 0.0) - displacement).square().mean(-1)


@pytest.mark.parametrize("provider", ["dfpo", "eager"])
@pytest.mark.parametrize("size", FLOW_SIZES, ids=str)
def bench_flow_consistency_loss(race, size, provider):
    rows, quantiles, width, steps = size
    field = make_field(rows, width, requires_grad=True)
    base = torch.randn(rows, quantiles, generator=torch.Generator().manual_seed(1))

    def run(function, field):
        loss = function(field)
        return loss.detach(), *torch.autograd.grad(loss.sum(), field.bias)

    calls = {
        "dfpo": lambda f: flow_consistency_loss(f, base, steps=steps),
        "eager": lambda f: eager(f, base, steps),
    }
    exact = type(field)(*(x.detach().double().requires_grad_() for x in field))
    expected = run(lambda f: reference.flow_consistency_loss(f, base.double(), steps=steps), exact)
    race(
        "flow_consistency_loss forward+backward", "R{} Q{} W{} K{}".format(*size), provider,
        lambda: run(calls[provider], field), expected, rounds=3,
    )  # fmt: skip
