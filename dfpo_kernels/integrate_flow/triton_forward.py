"""Forward kernels: lanes are particles, and the loop over units w adds into registers."""

from __future__ import annotations

import triton
import triton.language as tl

from dfpo_kernels.integrate_flow.triton_field import (
    field_rows,
    own_rows,
    solver_step,
    velocity_at,
)


@triton.jit(do_not_specialize=["R"])
def velocity_kernel(
    bias, gain, offset, z_weight, time_weight, bias_stride, gain_stride, offset_stride,
    z,  # [R, Q]
    flow_time,  # [R, 1] or [R, Q]
    out,  # [R, Q]
    R, z_stride, time_stride,
    Q: tl.constexpr, W: tl.constexpr, TIME_PER_QUANTILE: tl.constexpr, SIGMOID: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_Q: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    row, there = own_rows(R, BLOCK_R)
    q = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)[None, :]
    wanted = there[:, None] & (q < Q)
    field = field_rows(row, bias, gain, offset, z_weight, time_weight,
                       bias_stride, gain_stride, offset_stride)  # fmt: skip
    row = row[:, None]
    particles = tl.load(z + row * z_stride + q, mask=q < Q, other=0.0).to(tl.float32)

    if TIME_PER_QUANTILE:
        s = tl.load(flow_time + row * time_stride + q, mask=q < Q, other=0.0).to(tl.float32)
    else:
        s = tl.load(flow_time + row * time_stride).to(tl.float32)

    v = velocity_at(particles, s, field, W, SIGMOID, UNROLL)
    tl.store(out + row * Q + q, v, mask=wanted)


@triton.jit(do_not_specialize=["R"])
def integrate_kernel(
    bias, gain, offset, z_weight, time_weight, bias_stride, gain_stride, offset_stride,
    base,  # [R, Q]
    start,  # [R]
    end,  # [R]
    out,  # [R, Q], or [R, steps + 1, Q] with TRAJECTORY
    path,  # [R, steps, Q], states before each step, with SAVE_PATH
    R, steps, base_stride, start_stride, end_stride,
    Q: tl.constexpr, W: tl.constexpr, METHOD: tl.constexpr, TRAJECTORY: tl.constexpr,
    SAVE_PATH: tl.constexpr, SIGMOID: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_Q: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    row, there = own_rows(R, BLOCK_R)
    q = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)[None, :]
    wanted = there[:, None] & (q < Q)
    field = field_rows(row, bias, gain, offset, z_weight, time_weight,
                       bias_stride, gain_stride, offset_stride)  # fmt: skip
    row = row[:, None]
    s = tl.load(start + row * start_stride).to(tl.float32)
    span = tl.load(end + row * end_stride).to(tl.float32) - s
    z = tl.load(base + row * base_stride + q, mask=q < Q, other=0.0).to(tl.float32)

    for k in tl.range(0, steps):
        if SAVE_PATH:
            tl.store(path + (row * steps + k) * Q + q, z, mask=wanted)
        if TRAJECTORY:
            tl.store(out + (row * (steps + 1) + k) * Q + q, z, mask=wanted)
        z = solver_step(z, k, steps, s, span, field, W, METHOD, SIGMOID, UNROLL)

    if TRAJECTORY:
        tl.store(out + (row * (steps + 1) + steps) * Q + q, z, mask=wanted)
    else:
        tl.store(out + row * Q + q, z, mask=wanted)
