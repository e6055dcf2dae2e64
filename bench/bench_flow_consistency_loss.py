"""flow_consistency_loss beside its parts, which it may not exceed by much, and eager PyTorch."""

from __future__ import annotations

import pytest
import torch
from cases import FLOW, euler, make_field, make_particles, ridge_velocity

from dfpo_kernels import flow_consistency_loss, flow_velocity, integrate_flow, reference

ROWS, QUANTILES, WIDTH, STEPS = FLOW


def eager(field, base):
    with torch.no_grad():
        displacement = euler(field, base, STEPS) - base
    return (ridge_velocity(field, base, 0.0) - displacement).square().mean(-1)


def parts(field, base):
    """One integral and one velocity, the least that the loss needs."""
    with torch.no_grad():
        integrate_flow(field, base, steps=STEPS)
    return flow_velocity(field, base, 0.0)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def bench_flow_consistency_loss(race, backward):
    field, base = make_field(ROWS, WIDTH, backward), make_particles(ROWS, QUANTILES)

    def run(function, field=field, base=base):
        loss = function(field, base)
        if not backward:
            return loss
        return loss.detach(), *torch.autograd.grad(loss.sum(), field)

    exact = type(field)(*(x.detach().double().requires_grad_(backward) for x in field))
    race(
        "flow_consistency_loss" + (" + backward" if backward else ""),
        "R{} Q{} W{} K{}".format(*FLOW),
        {
            "dfpo": lambda: run(lambda f, z: flow_consistency_loss(f, z, steps=STEPS)),
            "eager": lambda: run(eager),
        },
        run(
            lambda f, z: reference.flow_consistency_loss(f, z, steps=STEPS), exact, base.double()
        ),
        floors={"integral and velocity": lambda: run(parts)},
        evaluations=ROWS * QUANTILES * WIDTH * (STEPS + 1),
    )  # fmt: skip
