"""Launchers of the velocity field and its integral in Triton, forward and backward.

No reduction across lanes stands in any inner loop of the kernels, and nothing of size [R, Q, W] is
stored. Between the two backward kernels lies a scratch buffer of at most ``SCRATCH_FLOATS``: rows
go through both in chunks.

    triton_launch     tiles and warps
    triton_field      what kernels share: the velocity, a solver's step
    triton_forward    kernels
    triton_backward   kernels
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from dfpo_kernels import _dispatch as dispatch
from dfpo_kernels.field import FlowField
from dfpo_kernels.integrate_flow.reference import METHODS
from dfpo_kernels.integrate_flow.triton_backward import (
    adjoint_kernel,
    coefficients_kernel,
    velocity_adjoint_kernel,
)
from dfpo_kernels.integrate_flow.triton_forward import integrate_kernel, velocity_kernel
from dfpo_kernels.integrate_flow.triton_launch import LAUNCHES, tile_of

# 16 MiB stay in the second level cache of an A100 (40 MB) or H100 (50 MB).
SCRATCH_FLOATS = 2**22
# Contraction to fused multiply-add is wanted, whatever Triton's default is.
OPTIONS = {"enable_fp_fusion": True}


def sigmoid_of(field: FlowField) -> str:
    """ "approximate" where its error lies below the rounding of the coefficients, on NVIDIA."""
    half = all(t.dtype in (torch.bfloat16, torch.float16) for t in (field.bias, field.gain))
    nvidia = field.bias.device.type == "cuda" and torch.version.hip is None
    return "approximate" if half and nvidia else "exact"


def field_arguments(field: FlowField) -> tuple:
    strides = (field.bias.stride(0), field.gain.stride(0), field.offset.stride(0))
    return (*field, *strides)


def laid_out(field: FlowField) -> FlowField:
    """The same field of rows with every last axis contiguous."""
    return FlowField(
        dispatch.with_contiguous_rows(field.bias),
        dispatch.with_contiguous_rows(field.gain),
        field.offset,
        field.z_weight.contiguous(),
        field.time_weight.contiguous(),
    )


def spread(tensor: Tensor, rows: int) -> Tensor:
    """[R, n] or [1, n] as [R, n] with contiguous rows; stride 0 repeats a shared row."""
    return dispatch.with_contiguous_rows(tensor).expand(rows, -1)


def flow_velocity(bias, gain, offset, z_weight, time_weight, z, flow_time):
    rows, num_quantiles = bias.shape[0], z.shape[1]
    out = z.new_empty((rows, num_quantiles))
    if rows == 0:
        return out
    field = laid_out(FlowField(bias, gain, offset, z_weight, time_weight))
    z, flow_time = spread(z, rows), spread(flow_time, rows)
    launch = LAUNCHES["forward"]
    tile = tile_of(launch.elements, num_quantiles)
    grid = (triton.cdiv(rows, tile.rows), triton.cdiv(num_quantiles, tile.columns))
    velocity_kernel[grid](
        *field_arguments(field), z, flow_time, out, rows, z.stride(0), flow_time.stride(0),
        Q=num_quantiles, W=bias.shape[1], TIME_PER_QUANTILE=flow_time.shape[1] > 1,
        SIGMOID=sigmoid_of(field), BLOCK_R=tile.rows, BLOCK_Q=tile.columns, UNROLL=launch.unroll,
        num_warps=launch.warps, **OPTIONS,
    )  # fmt: skip

    return out


def integrate_flow(
    bias, gain, offset, z_weight, time_weight, base, start, end, steps, method, trajectory, save
):
    rows, num_quantiles = bias.shape[0], base.shape[1]
    out = base.new_empty((rows, *((steps + 1,) if trajectory else ()), num_quantiles))
    path = base.new_empty((rows, steps, num_quantiles) if save else (0,), dtype=torch.float32)
    if rows == 0:
        return out, path
    field = laid_out(FlowField(bias, gain, offset, z_weight, time_weight))
    base, start, end = (spread(tensor, rows) for tensor in (base, start, end))
    launch = LAUNCHES["forward"]
    tile = tile_of(launch.elements, num_quantiles)
    grid = (triton.cdiv(rows, tile.rows), triton.cdiv(num_quantiles, tile.columns))
    integrate_kernel[grid](
        *field_arguments(field), base, start, end, out, path,
        rows, steps, base.stride(0), start.stride(0), end.stride(0),
        Q=num_quantiles, W=bias.shape[1], METHOD=method, TRAJECTORY=trajectory, SAVE_PATH=save,
        SIGMOID=sigmoid_of(field), BLOCK_R=tile.rows, BLOCK_Q=tile.columns, UNROLL=launch.unroll,
        num_warps=launch.warps, **OPTIONS,
    )  # fmt: skip

    return out, path


def row_chunks(rows: int, floats_per_row: int) -> list[slice]:
    size = max(1, SCRATCH_FLOATS // floats_per_row)
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def rows_of(field: FlowField, rows: slice) -> FlowField:
    return field._replace(
        bias=field.bias[rows], gain=field.gain[rows], offset=field.offset[rows]
    )  # fmt: skip


def own_or_sum(per_row: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """The gradient [R, n] of a tensor [R, n], or its sum over rows for one that all rows share."""
    if per_row.shape[0] != rows:
        per_row = per_row.sum(0, keepdim=True)
    return per_row.to(dtype)


def coefficient_gradients(
    field: FlowField,
    start: Tensor,  # [R, 1], or flow times [R, Q]
    end: Tensor,  # [R, 1]
    states: Tensor,  # [R, steps * stages * Q]
    grad_slopes: Tensor,  # [R, steps * stages * Q]
    grads: tuple[Tensor, Tensor, Tensor, Tensor],  # bias [R, W], gain [R, W], start, end [R]
    num_quantiles: int,
    steps: int,
    method: str,
) -> Tensor:  # [2, W], gradients of z_weight and time_weight
    rows, width = field.bias.shape
    launch = LAUNCHES["coefficients"]
    tile = tile_of(launch.elements, width)
    programs = triton.cdiv(rows, tile.rows)
    partials = torch.empty((2, programs, width), dtype=torch.float32, device=states.device)
    bias, gain, by_start, by_end = grads
    coefficients_kernel[(programs,)](
        field.bias, field.gain, field.z_weight, field.time_weight,
        field.bias.stride(0), field.gain.stride(0),
        start, end, states, grad_slopes, bias, gain, *partials, by_start, by_end,
        rows, steps, start.stride(0), end.stride(0), states.stride(0), grad_slopes.stride(0),
        Q=num_quantiles, W=width, METHOD=method, TIME_PER_QUANTILE=start.shape[1] > 1,
        SIGMOID=sigmoid_of(field), BLOCK_R=tile.rows, BLOCK_W=tile.columns, UNROLL=launch.unroll,
        num_warps=launch.warps, **OPTIONS,
    )  # fmt: skip

    return partials.sum(1)


def flow_velocity_backward(grad_velocity, bias, gain, offset, z_weight, time_weight, z, flow_time):
    inputs = (bias, gain, offset, z_weight, time_weight, z, flow_time)
    rows, num_quantiles = grad_velocity.shape
    if rows == 0:
        return tuple(torch.zeros_like(tensor) for tensor in inputs)
    field = laid_out(FlowField(*inputs[:5]))
    particles, times = spread(z, rows), spread(flow_time, rows)
    grad_velocity = dispatch.with_contiguous_rows(grad_velocity)
    per_quantile = flow_time.shape[1] > 1

    grad_bias, grad_gain = (torch.empty_like(t, memory_format=_ROWS) for t in (bias, gain))
    grad_offset = torch.empty_like(offset, memory_format=_ROWS)
    grad_z = _per_row(z, rows, num_quantiles)
    grad_times = _per_row(flow_time, rows, num_quantiles if per_quantile else 0)
    by_start, by_end = (_per_row(bias, rows) for _ in range(2))
    launch = LAUNCHES["adjoint"]
    tile = tile_of(launch.elements, num_quantiles)
    velocity_adjoint_kernel[(triton.cdiv(rows, tile.rows),)](
        *field_arguments(field), particles, times, grad_velocity, grad_offset, grad_z, grad_times,
        rows, particles.stride(0), times.stride(0), grad_velocity.stride(0),
        Q=num_quantiles, W=bias.shape[1], TIME_PER_QUANTILE=per_quantile,
        SIGMOID=sigmoid_of(field), BLOCK_R=tile.rows, BLOCK_Q=tile.columns, UNROLL=launch.unroll,
        num_warps=launch.warps, **OPTIONS,
    )  # fmt: skip

    # One euler step whose slope was taken at z and whose span is empty: start = end = flow_time.
    sums = coefficient_gradients(
        field, times, times, particles, grad_velocity, (grad_bias, grad_gain, by_start, by_end),
        num_quantiles, 1, "euler",
    )  # fmt: skip

    return (
        grad_bias,
        grad_gain,
        grad_offset,
        sums[0].to(z_weight.dtype),
        sums[1].to(time_weight.dtype),
        own_or_sum(grad_z, z.shape[0], z.dtype),
        own_or_sum(
            grad_times if per_quantile else by_start.unsqueeze(1),
            flow_time.shape[0],
            flow_time.dtype,
        ),
    )


def integrate_flow_backward(
    grad_out, bias, gain, offset, z_weight, time_weight, path, start, end, shared_base,
    steps, method, trajectory, time_grad,
):  # fmt: skip
    rows, num_quantiles = grad_out.shape[0], grad_out.shape[-1]
    base_rows = 1 if shared_base else rows
    if rows == 0:
        inputs = (bias, gain, offset, z_weight, time_weight, start, end)
        grads = [torch.zeros_like(tensor) for tensor in inputs]
        return *grads[:5], grad_out.new_zeros((base_rows, num_quantiles)), *grads[5:]

    field = laid_out(FlowField(bias, gain, offset, z_weight, time_weight))
    starts, ends = spread(start, rows), spread(end, rows)
    grads = dispatch.with_contiguous_rows(grad_out.flatten(1))
    path = path.flatten(1)

    grad_bias, grad_gain = (torch.empty_like(t, memory_format=_ROWS) for t in (bias, gain))
    grad_offset = torch.empty_like(offset, memory_format=_ROWS)
    grad_base = torch.empty(
        (rows, num_quantiles),
        dtype=torch.float32 if base_rows != rows else grad_out.dtype,
        device=bias.device,
    )
    by_span, by_start, by_end = (_per_row(bias, rows) for _ in range(3))
    launch = LAUNCHES["adjoint"]
    tile = tile_of(launch.elements, num_quantiles)
    stages = len(METHODS[method].nodes)
    slopes = steps * stages * num_quantiles
    sums = []
    chunks = row_chunks(rows, slopes * (1 if stages == 1 else 2))

    for chunk in chunks:
        # A view of all rows would cost the host as much as a launch.
        only = len(chunks) == 1
        part = field if only else rows_of(field, chunk)
        own = [
            tensor if only else tensor[chunk]
            for tensor in (
                starts, ends, path, grads, grad_offset, grad_base, by_span,
                grad_bias, grad_gain, by_start, by_end,
            )
        ]  # fmt: skip
        own_start, own_end, chunk_path, own_grads, *outputs = own
        count = part.bias.shape[0]
        grad_slopes = _per_row(bias, count, slopes)
        # The only stage of euler's step is the state before it.
        states = chunk_path if stages == 1 else torch.empty_like(grad_slopes)
        adjoint_kernel[(triton.cdiv(count, tile.rows),)](
            *field_arguments(part), own_start, own_end, chunk_path, own_grads,
            states, grad_slopes, *outputs[:3],
            count, steps, starts.stride(0), ends.stride(0), grads.stride(0),
            Q=num_quantiles, W=bias.shape[1], METHOD=method, TRAJECTORY=trajectory,
            TIME_GRAD=time_grad, SIGMOID=sigmoid_of(field),
            BLOCK_R=tile.rows, BLOCK_Q=tile.columns, UNROLL=launch.unroll,
            num_warps=launch.warps, **OPTIONS,
        )  # fmt: skip
        sums.append(
            coefficient_gradients(
                part, own_start, own_end, states, grad_slopes, tuple(outputs[3:]),
                num_quantiles, steps, method,
            )
        )  # fmt: skip
        # Before the next chunk asks for its own.
        del grad_slopes, states

    weights = sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
    if time_grad:
        by_start, by_end = by_start - by_span, by_end + by_span
    return (
        grad_bias,
        grad_gain,
        grad_offset,
        weights[0].to(z_weight.dtype),
        weights[1].to(time_weight.dtype),
        own_or_sum(grad_base, base_rows, grad_out.dtype),
        own_or_sum(by_start.unsqueeze(1), start.shape[0], start.dtype),
        own_or_sum(by_end.unsqueeze(1), end.shape[0], end.dtype),
    )


_ROWS = torch.contiguous_format


def _per_row(like: Tensor, rows: int, columns: int | None = None) -> Tensor:
    """Uninitialised [rows], or [rows, columns]: in the dtype of ``like`` if that has a row for
    each, else float32, to be summed."""
    shape = (rows,) if columns is None else (rows, columns)
    own = columns is not None and like.shape == shape
    return torch.empty(shape, dtype=like.dtype if own else torch.float32, device=like.device)
