"""How the flow ops hand fields and gradients to csrc/bindings_cpu.cpp.

An argument that may be shared by all rows (the particles a flow starts from, a time) is a tensor
[R, n] or [1, n]; the gradient of a shared one is summed over rows by the native code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfpo_kernels import _dispatch as dispatch
from dfpo_kernels.field import FlowField


def laid_out(field: FlowField) -> FlowField:
    """The same field of rows as the native code reads it; keep it alive during the call."""
    return FlowField(
        dispatch.with_contiguous_rows(field.bias),
        dispatch.with_contiguous_rows(field.gain),
        field.offset,
        field.z_weight.float().contiguous(),
        field.time_weight.float().contiguous(),
    )


def field_argument(field: FlowField) -> tuple:
    return (
        dispatch.rows(field.bias),
        dispatch.rows(field.gain),
        dispatch.rows(field.offset),
        dispatch.pointer(field.z_weight),
        dispatch.pointer(field.time_weight),
        field.bias.shape[1],
    )


def spread(tensor: Tensor, rows: int) -> Tensor:
    """[R, n] or [1, n] as [R, n] with contiguous rows; stride 0 repeats a shared row."""
    return dispatch.with_contiguous_rows(tensor).expand(rows, -1)


def empty_gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device) for tensor in inputs
    )


def own_rows(gradient: Tensor, rows: int) -> tuple[int, int, int]:
    """Rows for a gradient that stays in its row, nothing for one that is summed over rows."""
    return dispatch.rows(gradient if gradient.shape[0] == rows else None)


class SharedGrads:
    """Gradients that the native code sums over rows: z_weight [W], time_weight [W], z [Q] and two
    times [1] each."""

    def __init__(self, width: int, num_quantiles: int, like: Tensor):
        self.sizes = (width, width, num_quantiles, 1, 1)
        self.sums = torch.empty(sum(self.sizes), dtype=torch.float32, device=like.device)

    def copy_to(self, rows: int, z_weight: Tensor, time_weight: Tensor, *shared: Tensor) -> None:
        """``shared``: gradients of z and times, left alone where they stay in their rows."""
        z_weight_sum, time_weight_sum, *rest = self.sums.split(self.sizes)
        z_weight.copy_(z_weight_sum)
        time_weight.copy_(time_weight_sum)
        for gradient, total in zip(shared, rest, strict=False):
            if gradient.shape[0] != rows:
                gradient.copy_(total.view_as(gradient))
