"""integrate_flow and flow_velocity beside eager PyTorch, torch.compile and torchdiffeq."""

from __future__ import annotations

import statistics
import time

import pytest
import torch
import torchdiffeq
from cases import FLOW, euler, make_field, make_particles, ridge_velocity

from dfpo_kernels import _cpu, flow_velocity, integrate_flow, reference

SIZE = "R{} Q{} W{} K{}".format(*FLOW)
ROWS, QUANTILES, WIDTH, STEPS = FLOW
EVALUATIONS = ROWS * QUANTILES * WIDTH * STEPS


def as_double(field):
    return type(field)(*(x.detach().double() for x in field))


def odeint(field, base, method):
    grid = torch.linspace(0, 1, STEPS + 1)
    return torchdiffeq.odeint(
        lambda s, z: ridge_velocity(field, z, s), base, grid, method=method
    )[-1]  # fmt: skip


def bench_forward(race):
    field, base = make_field(ROWS, WIDTH, False), make_particles(ROWS, QUANTILES)
    compiled = torch.compile(euler, dynamic=False)
    race(
        "integrate_flow", SIZE,
        {
            "dfpo": lambda: integrate_flow(field, base, steps=STEPS),
            "eager": lambda: euler(field, base, STEPS),
            "compile": lambda: compiled(field, base, STEPS),
            "torchdiffeq": lambda: odeint(field, base, "euler"),
        },
        reference.integrate_flow(as_double(field), base.double(), steps=STEPS),
        floors={"silu": lambda: _cpu.silu_floor(EVALUATIONS)},
        evaluations=EVALUATIONS,
    )  # fmt: skip


def bench_backward(race):
    field = make_field(ROWS, WIDTH, True)
    base = make_particles(ROWS, QUANTILES).requires_grad_()
    compiled = torch.compile(euler, dynamic=False)

    def with_gradients(function, field=field, base=base):
        value = function(field, base)
        return value.detach(), *torch.autograd.grad(value.square().sum(), (*field, base))

    exact = type(field)(*(x.requires_grad_() for x in as_double(field)))
    race(
        "integrate_flow + backward", SIZE,
        {
            "dfpo": lambda: with_gradients(lambda f, z: integrate_flow(f, z, steps=STEPS)),
            "eager": lambda: with_gradients(lambda f, z: euler(f, z, STEPS)),
            "compile": lambda: with_gradients(lambda f, z: compiled(f, z, STEPS)),
        },
        # The kernel in float64 is the reference, which takes the gradient by autograd.
        with_gradients(
            lambda f, z: reference.integrate_flow(f, z, steps=STEPS),
            exact, base.detach().double().requires_grad_(),
        ),
        evaluations=EVALUATIONS,
    )  # fmt: skip


@pytest.mark.parametrize(("method", "stages"), [("midpoint", 2), ("rk4", 4)])
def bench_methods(race, method, stages):
    field, base = make_field(ROWS, WIDTH, False), make_particles(ROWS, QUANTILES)
    race(
        f"integrate_flow {method}", SIZE,
        {
            "dfpo": lambda: integrate_flow(field, base, steps=STEPS, method=method),
            "torchdiffeq": lambda: odeint(field, base, method),
        },
        reference.integrate_flow(as_double(field), base.double(), steps=STEPS, method=method),
        floors={
            "Euler per evaluation": lambda: integrate_flow(field, base, steps=STEPS * stages)
        },
        evaluations=EVALUATIONS * stages,
    )  # fmt: skip


def bench_flow_velocity(race):
    field, z = make_field(ROWS, WIDTH, False), make_particles(ROWS, QUANTILES)
    race(
        "flow_velocity", f"R{ROWS} Q{QUANTILES} W{WIDTH}",
        {
            "dfpo": lambda: flow_velocity(field, z, 0.5),
            "eager": lambda: ridge_velocity(field, z, 0.5),
        },
        reference.flow_velocity(as_double(field), z.double(), 0.5),
        floors={"silu": lambda: _cpu.silu_floor(EVALUATIONS // STEPS)},
        evaluations=EVALUATIONS // STEPS,
    )  # fmt: skip


def bench_threads(benchmark, threads):
    """In wall time, since threads save waiting and not work; one and two take turns."""
    field, base = make_field(ROWS, WIDTH, False), make_particles(ROWS, QUANTILES)
    seconds = {1: [], 2: []}
    before = torch.get_num_threads()
    try:
        for _ in range(15):
            for count, found in seconds.items():
                torch.set_num_threads(count)
                started = time.perf_counter()
                integrate_flow(field, base, steps=STEPS)
                found.append(time.perf_counter() - started)
        benchmark.pedantic(integrate_flow, (field, base), {"steps": STEPS}, rounds=3)
    finally:
        torch.set_num_threads(before)
    threads.update({count: statistics.median(found) * 1e3 for count, found in seconds.items()})
