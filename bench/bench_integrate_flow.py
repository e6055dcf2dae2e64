"""integrate_flow and flow_velocity against eager PyTorch, torch.compile and torchdiffeq."""

from __future__ import annotations

import pytest
import torch
import torchdiffeq
from cases import FLOW_SIZES, euler, make_field, ridge_velocity

from dfpo_kernels import flow_velocity, integrate_flow, reference

COMPILED = torch.compile(euler, dynamic=False)


def with_gradient(function, field, base):
    """Value and the gradient of every input."""

    def run():
        value = function()
        return value.detach(), *torch.autograd.grad(value.square().sum(), (*field, base))

    return run


@pytest.mark.parametrize("provider", ["dfpo", "eager", "compile", "torchdiffeq"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("size", FLOW_SIZES, ids=str)
def bench_integrate_flow(race, size, backward, provider):
    rows, quantiles, width, steps = size
    field = make_field(rows, width, requires_grad=backward)
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(rows, quantiles, generator=generator).requires_grad_(backward)
    grid = torch.linspace(0, 1, steps + 1)
    calls = {
        "dfpo": lambda: integrate_flow(field, base, steps=steps),
        "eager": lambda: euler(field, base, steps),
        "compile": lambda: COMPILED(field, base, steps),
        "torchdiffeq": lambda: torchdiffeq.odeint(
            lambda s, z: ridge_velocity(field, z, s), base, grid, method="euler"
        )[-1],
    }
    run = with_gradient(calls[provider], field, base) if backward else calls[provider]
    exact = type(field)(*(x.double() for x in field))
    value = lambda: reference.integrate_flow(exact, base.double(), steps=steps)  # noqa: E731
    expected = with_gradient(value, field, base)() if backward else value()
    name = "integrate_flow" + (" forward+backward" if backward else " forward")
    race(name, "R{} Q{} W{} K{}".format(*size), provider, run, expected, rounds=3)


@pytest.mark.parametrize("provider", ["dfpo", "eager"])
@pytest.mark.parametrize("size", FLOW_SIZES, ids=str)
def bench_flow_velocity(race, size, provider):
    rows, quantiles, width, _ = size
    field = make_field(rows, width, requires_grad=False)
    z = torch.randn(rows, quantiles, generator=torch.Generator().manual_seed(1))
    calls = {
        "dfpo": lambda: flow_velocity(field, z, 0.5),
        "eager": lambda: ridge_velocity(field, z, 0.5),
    }
    exact = type(field)(*(x.double() for x in field))
    expected = reference.flow_velocity(exact, z.double(), 0.5)
    race("flow_velocity", f"R{rows} Q{quantiles} W{width}", provider, calls[provider], expected)
