"""The definitions of the velocity field and of its integral, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dfpo_kernels import _checks as checks
from dfpo_kernels.field import FlowField


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method.

    Slope i is the velocity at z + step * sum_j matrix[i][j] slope_j and time + nodes[i] * step;
    the step adds step * sum_i weights[i] slope_i.
    """

    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


METHODS = {
    "euler": Tableau((0.0,), ((),), (1.0,)),
    "midpoint": Tableau((0.0, 1 / 2), ((), (1 / 2,)), (0.0, 1.0)),
    # The explicit trapezoid rule.
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2)),
    # Kutta's 3/8 rule, not his more common one.
    "rk4": Tableau(
        (0.0, 1 / 3, 2 / 3, 1.0),
        ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)),
        (1 / 8, 3 / 8, 3 / 8, 1 / 8),
    ),
}


def compute_dtype(*values: Tensor | float) -> torch.dtype:
    """What the arithmetic runs in: float32, or float64 where any tensor has it."""
    dtype = torch.float32
    for value in values:
        if isinstance(value, Tensor):
            dtype = torch.promote_types(dtype, value.dtype)
    return dtype


def flow_velocity(
    field: FlowField,
    z: Tensor,  # [..., Q]
    flow_time: Tensor | float,  # scalar, [...] or [..., Q]
) -> Tensor:  # [..., Q]
    dtype = compute_dtype(*field, z, flow_time)
    bias, gain, offset, z_weight, time_weight = (tensor.to(dtype) for tensor in field)
    s = torch.as_tensor(flow_time, dtype=dtype, device=z.device)
    if s.dim() == z.dim() - 1:
        s = s.unsqueeze(-1)
    # Quantiles on the second last axis, units on the last.
    x = bias.unsqueeze(-2) + z_weight * z.to(dtype).unsqueeze(-1) + time_weight * s.unsqueeze(-1)
    velocity = offset.unsqueeze(-1) + (gain.unsqueeze(-2) * F.silu(x)).sum(-1)

    return velocity.to(z.dtype)


def integrate_flow(
    field: FlowField | Callable[[Tensor, Tensor], Tensor],
    base: Tensor,  # [..., Q] or [Q]
    *,
    steps: int = 8,
    method: str = "euler",
    start: Tensor | float = 0.0,  # scalar or [...]
    end: Tensor | float = 1.0,  # scalar or [...]
    trajectory: bool = False,
) -> Tensor:  # [..., Q] or [..., steps + 1, Q]
    if isinstance(field, FlowField):
        dtype = compute_dtype(base, start, end, *field)
        z = base.to(dtype).expand(*field.offset.shape, base.shape[-1])

        def velocity(z: Tensor, s: Tensor) -> Tensor:
            return flow_velocity(field, z, s)

    else:
        dtype = compute_dtype(base, start, end)
        z = base.to(dtype)

        def velocity(z: Tensor, s: Tensor) -> Tensor:
            return _check_slope(field(z, s), z)

    start, end = (torch.as_tensor(time, dtype=dtype, device=z.device) for time in (start, end))
    start, end = (time.unsqueeze(-1) if time.dim() else time for time in (start, end))
    step = (end - start) / steps
    tableau = METHODS[method]
    states = [z]

    for k in range(steps):
        slopes: list[Tensor] = []
        for node, row in zip(tableau.nodes, tableau.matrix, strict=True):
            s = start + (end - start) * ((k + node) / steps)
            slopes.append(velocity(_advance(z, step, row, slopes), s))
        z = _advance(z, step, tableau.weights, slopes)
        if trajectory:
            states.append(z)

    return (torch.stack(states, -2) if trajectory else z).to(base.dtype)


def _advance(
    z: Tensor,  # [..., Q]
    step: Tensor,  # [] or [..., 1]
    coefficients: Sequence[float],
    slopes: Sequence[Tensor],  # [..., Q] each
) -> Tensor:  # [..., Q]
    for coefficient, slope in zip(coefficients, slopes, strict=True):
        if coefficient != 0.0:
            z = z + step * (coefficient * slope)
    return z


def _check_slope(slope: object, z: Tensor) -> Tensor:
    checks.check_float_tensor("field(z, s)", slope)
    checks.check_shape("field(z, s)", slope, z.shape, "the shape of z")
    return slope.to(z.dtype)
