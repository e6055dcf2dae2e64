"""Compiles kernels before a run needs them."""

from __future__ import annotations

import torch

from dfpo_kernels.field import FlowField
from dfpo_kernels.flow_consistency_loss import flow_consistency_loss
from dfpo_kernels.integrate_flow import flow_velocity, integrate_flow
from dfpo_kernels.quantile_huber_loss import quantile_huber_loss


def warmup(
    device: torch.device | str,
    *,
    num_quantiles: int = 64,
    width: int = 64,
    steps: int = 8,
    method: str = "euler",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Compiles what a run with these sizes will need on a GPU; does nothing on the CPU.

    Kernels of a GPU are compiled at their first call for a set of sizes and dtypes, which takes
    seconds; this is that first call, forward and backward, on a few rows. Any number of rows takes
    the same binary.

    Args:
        device: where the run's tensors will lie.
        num_quantiles: Q of the run.
        width: W of its fields.
        steps: solver steps, as in integrate_flow.
        method: solver method, as in integrate_flow.
        dtype: dtype of the fields; particles are float32.
    """
    if torch.device(device).type != "cpu":
        exercise(torch.device(device), num_quantiles, width, steps, method, dtype)


def exercise(
    device: torch.device,
    num_quantiles: int,
    width: int,
    steps: int,
    method: str,
    dtype: torch.dtype,
) -> None:
    """Every op forward and backward, and the integral as without a gradient; with base noise that
    rows share and with their own, which lie differently in memory."""
    rows = 32

    def ones(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=dtype, device=device, requires_grad=True)

    field = FlowField(ones(rows, width), ones(rows, width), ones(rows), ones(width), ones(width))
    for base in (
        torch.zeros(num_quantiles, device=device),
        torch.zeros(rows, num_quantiles, device=device),
    ):
        with torch.no_grad():
            integrate_flow(field, base, steps=steps, method=method)
        quantiles = integrate_flow(field, base, steps=steps, method=method)
        consistency = flow_consistency_loss(field, base, steps=steps, method=method)
        regression = quantile_huber_loss(quantiles, base.expand(rows, -1))
        slopes = flow_velocity(field, quantiles, 0.0)
        (consistency + regression + slopes.sum(-1)).sum().backward()
