"""The flow consistency loss in Triton: the integral, the shortcut's velocity at flow time 0 and the
mean over particles in one kernel. Its backward pass is that of the velocity.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dfpo_kernels.field import FlowField
from dfpo_kernels.integrate_flow.triton_field import (
    field_rows,
    own_rows,
    solver_step,
    velocity_at,
)
from dfpo_kernels.integrate_flow.triton_kernel import (
    OPTIONS,
    field_arguments,
    laid_out,
    sigmoid_of,
    spread,
)
from dfpo_kernels.integrate_flow.triton_launch import Launch, tile_of

LAUNCH = Launch(
    512, 4, 4, "4 particles a thread: beside its state each keeps where it started; 8 would spill"
)


@triton.jit(do_not_specialize=["R"])
def flow_consistency_kernel(
    bias, gain, offset, z_weight, time_weight, bias_stride, gain_stride, offset_stride,
    shortcut_bias, shortcut_gain, shortcut_offset, shortcut_z_weight, shortcut_time_weight,
    shortcut_bias_stride, shortcut_gain_stride, shortcut_offset_stride,
    base,  # [R, Q]
    loss,  # [R]
    residual,  # [R, Q], shortcut's velocity less displacement, with SAVE
    R, steps, base_stride,
    Q: tl.constexpr, W: tl.constexpr, SHORTCUT_W: tl.constexpr, METHOD: tl.constexpr,
    SAVE: tl.constexpr, SIGMOID: tl.constexpr, SHORTCUT_SIGMOID: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_Q: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    row, there = own_rows(R, BLOCK_R)
    field = field_rows(row, bias, gain, offset, z_weight, time_weight,
                       bias_stride, gain_stride, offset_stride)  # fmt: skip
    shortcut = field_rows(
        row, shortcut_bias, shortcut_gain, shortcut_offset, shortcut_z_weight, shortcut_time_weight,
        shortcut_bias_stride, shortcut_gain_stride, shortcut_offset_stride,
    )  # fmt: skip
    rows = row[:, None]
    start = tl.zeros((BLOCK_R, 1), tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)

    for first in tl.range(0, Q, BLOCK_Q):
        q = first + tl.arange(0, BLOCK_Q)[None, :]
        origin = tl.load(base + rows * base_stride + q, mask=q < Q, other=0.0).to(tl.float32)
        z = origin
        for k in tl.range(0, steps):
            z = solver_step(z, k, steps, start, start + 1.0, field, W, METHOD, SIGMOID, UNROLL)
        jump = velocity_at(origin, start, shortcut, SHORTCUT_W, SHORTCUT_SIGMOID, UNROLL)
        difference = jump - (z - origin)
        if SAVE:
            tl.store(residual + rows * Q + q, difference, mask=there[:, None] & (q < Q))
        total += tl.sum(tl.where(q < Q, difference * difference, 0.0), 1)

    tl.store(loss + row, total / Q, mask=there)


def flow_consistency_loss(*args):
    *fields, base, steps, method, save = args
    field, shortcut = (laid_out(FlowField(*part)) for part in (fields[:5], fields[5:]))
    rows, num_quantiles = field.bias.shape[0], base.shape[1]
    loss = field.z_weight.new_empty((rows,), dtype=torch.float32)
    residual = loss.new_empty((rows, num_quantiles) if save else (0,))
    if rows == 0:
        return loss, residual
    base = spread(base, rows)
    tile = tile_of(LAUNCH.elements, num_quantiles)
    flow_consistency_kernel[(triton.cdiv(rows, tile.rows),)](
        *field_arguments(field), *field_arguments(shortcut), base, loss, residual,
        rows, steps, base.stride(0),
        Q=num_quantiles, W=field.bias.shape[1], SHORTCUT_W=shortcut.bias.shape[1], METHOD=method,
        SAVE=save, SIGMOID=sigmoid_of(field), SHORTCUT_SIGMOID=sigmoid_of(shortcut),
        BLOCK_R=tile.rows, BLOCK_Q=tile.columns, UNROLL=LAUNCH.unroll,
        num_warps=LAUNCH.warps, **OPTIONS,
    )  # fmt: skip

    return loss, residual
