"""The velocity field and its integral in Triton, forward and backward.

No reduction across lanes stands in any inner loop:

* ``integrate``, ``velocity``: lanes are particles; the loop over units w adds into registers.
* backward, first kernel (``adjoint``): lanes are particles. A velocity depends on its particle
  alone, so the same loop over units gives the slope v and its derivative J = dv/dz, and the chain
  rule through stages and steps is scalar arithmetic per particle. It leaves d loss / d slope.
* backward, second kernel (``coefficients``): lanes are units; the loop over all particles of all
  slopes adds the gradients of a row's coefficients into registers. Weights that rows share get one
  partial sum per program, added up in a fixed order: no atomics, the same bits every time.

Nothing of size [R, Q, W] is stored. Between the two kernels lies a scratch buffer of at most
``SCRATCH_FLOATS``: rows go through both in chunks.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dfpo_kernels import _dispatch as dispatch
from dfpo_kernels.field import FlowField
from dfpo_kernels.integrate_flow.reference import METHODS

# --- launch parameters ----------------------------------------------------------------------------

# Sizes of a run (Q, W) and options are constants of a kernel; the number of rows changes from call
# to call, and one binary serves them all.


class Launch(NamedTuple):
    elements: int  # of the tile that a program keeps in registers
    warps: int
    unroll: int  # of the inner loop
    reason: str


# Measured nowhere yet: chosen by registers and instructions of the compiled code. Nothing is
# searched for at run time.
LAUNCHES = MappingProxyType(
    {
        "forward": Launch(
            1024, 4, 4, "8 particles a thread share the loads of a unit's coefficients; 4 units in "
            "flight hide the latency of the special function unit"
        ),
        "adjoint": Launch(
            512, 4, 4, "4 particles a thread: rk4 keeps 4 slopes, 4 derivatives and the state of "
            "each"
        ),
        "coefficients": Launch(
            512, 4, 8, "4 units a thread: 4 sums and 4 coefficients of each stay in registers; 4 "
            "particles in flight instead of 8 spill on sm_100"
        ),
    }
)  # fmt: skip
# A warp of fewer particles per row than this reads the coefficients of too many rows at once.
LEAST_PARTICLES = 32
# 16 MiB stay in the second level cache of an A100 (40 MB) or H100 (50 MB).
SCRATCH_FLOATS = 2**22


class Tile(NamedTuple):
    rows: int
    columns: int


def tile_of(elements: int, columns: int) -> Tile:
    """The tile of that many elements that wastes the fewest lanes on ``columns`` columns; on a tie
    the wider one, which reads fewer rows' coefficients."""
    wide = min(triton.next_power_of_2(columns), 4 * LEAST_PARTICLES)
    narrow = min(wide, LEAST_PARTICLES)
    sizes = [size for size in (wide, wide // 2, wide // 4) if size >= narrow]
    block = min(sizes, key=lambda size: (triton.cdiv(columns, size) * size, -size))
    return Tile(elements // block, block)


# --- pieces that the kernels share ----------------------------------------------------------------

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.constexpr_function
def stages_of(method):
    return len(METHODS[method].nodes)


@triton.constexpr_function
def node_of(method, stage):
    return METHODS[method].nodes[stage]


@triton.constexpr_function
def matrix_of(method, stage, earlier):
    return METHODS[method].matrix[stage][earlier]


@triton.constexpr_function
def weight_of(method, stage):
    return METHODS[method].weights[stage]


@triton.jit
def sigmoid(x, SIGMOID: tl.constexpr):
    """ "exact": to 2 ulp, portable. "approximate": one instruction of NVIDIA's special function
    unit, relative error of the tanh below 2^-11. "rounded": what "approximate" may be off by, for
    the interpreter: the tanh rounded to 11 significant bits."""
    if SIGMOID == "exact":
        return 1.0 / (1.0 + tl.exp2(x * -LOG2_E))
    elif SIGMOID == "approximate":
        tanh = tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [0.5 * x], dtype=tl.float32, is_pure=True, pack=1
        )
        return 0.5 + 0.5 * tanh
    else:
        tanh = 2.0 / (1.0 + tl.exp2(x * -LOG2_E)) - 1.0
        bits = (tanh.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        return 0.5 + 0.5 * bits.to(tl.float32, bitcast=True)


@triton.jit
def velocity_at(
    z,  # [rows, particles]
    s,  # [rows, 1] or [rows, particles]
    field,
    W: tl.constexpr,
    SIGMOID: tl.constexpr,
    UNROLL: tl.constexpr,
):  # [rows, particles]
    bias, gain, offset, z_weight, time_weight = field
    v = tl.zeros_like(z) + offset[:, None]
    for w in tl.range(0, W, loop_unroll_factor=UNROLL):
        b, g = tl.load(bias + w).to(tl.float32), tl.load(gain + w).to(tl.float32)
        zw = tl.load(z_weight + w).to(tl.float32)
        tw = tl.load(time_weight + w).to(tl.float32)
        x = (b[:, None] + tw * s) + zw * z
        v += g[:, None] * (x * sigmoid(x, SIGMOID))
    return v


@triton.jit
def velocity_and_slopes(
    z,  # [rows, particles]
    s,  # [rows, 1] or [rows, particles]
    field,
    W: tl.constexpr,
    SIGMOID: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The velocity and its derivatives by z and s; what a caller leaves unused is not computed."""
    bias, gain, offset, z_weight, time_weight = field
    v = tl.zeros_like(z) + offset[:, None]
    by_z = tl.zeros_like(z)
    by_s = tl.zeros_like(z)
    for w in tl.range(0, W, loop_unroll_factor=UNROLL):
        b, g = tl.load(bias + w).to(tl.float32), tl.load(gain + w).to(tl.float32)
        zw = tl.load(z_weight + w).to(tl.float32)
        tw = tl.load(time_weight + w).to(tl.float32)
        x = (b[:, None] + tw * s) + zw * z
        sigma = sigmoid(x, SIGMOID)
        silu = x * sigma
        derivative = sigma + (silu - silu * sigma)
        v += g[:, None] * silu
        by_z += (g * zw)[:, None] * derivative
        by_s += (g * tw)[:, None] * derivative
    return v, by_z, by_s


@triton.jit
def advance(z, step, COEFFICIENT: tl.constexpr, slope):
    if COEFFICIENT != 0.0:
        z += step * (COEFFICIENT * slope)
    return z


@triton.jit
def solver_step(
    z,  # [rows, particles]
    k,
    steps,
    start,  # [rows, 1]
    span,  # [rows, 1]
    field,
    W: tl.constexpr,
    METHOD: tl.constexpr,
    SIGMOID: tl.constexpr,
    UNROLL: tl.constexpr,
):  # [rows, particles]
    STAGES: tl.constexpr = stages_of(METHOD)
    step = span / steps
    v0 = velocity_at(z, start + span * (k / steps), field, W, SIGMOID, UNROLL)
    end = advance(z, step, weight_of(METHOD, 0), v0)
    if STAGES > 1:
        s = start + span * ((k + node_of(METHOD, 1)) / steps)
        stage = advance(z, step, matrix_of(METHOD, 1, 0), v0)
        v1 = velocity_at(stage, s, field, W, SIGMOID, UNROLL)
        end = advance(end, step, weight_of(METHOD, 1), v1)
    if STAGES > 2:
        s = start + span * ((k + node_of(METHOD, 2)) / steps)
        stage = advance(z, step, matrix_of(METHOD, 2, 0), v0)
        stage = advance(stage, step, matrix_of(METHOD, 2, 1), v1)
        v2 = velocity_at(stage, s, field, W, SIGMOID, UNROLL)
        end = advance(end, step, weight_of(METHOD, 2), v2)
    if STAGES > 3:
        s = start + span * ((k + node_of(METHOD, 3)) / steps)
        stage = advance(z, step, matrix_of(METHOD, 3, 0), v0)
        stage = advance(stage, step, matrix_of(METHOD, 3, 1), v1)
        stage = advance(stage, step, matrix_of(METHOD, 3, 2), v2)
        v3 = velocity_at(stage, s, field, W, SIGMOID, UNROLL)
        end = advance(end, step, weight_of(METHOD, 3), v3)
    return end


@triton.jit
def field_rows(
    row,  # [rows], each below R
    bias,  # [R, W]
    gain,  # [R, W]
    offset,  # [R]
    z_weight,  # [W]
    time_weight,  # [W]
    bias_stride,
    gain_stride,
    offset_stride,
):
    """The field of some rows, as velocity_at takes it."""
    return (
        bias + row * bias_stride,
        gain + row * gain_stride,
        tl.load(offset + row * offset_stride).to(tl.float32),
        z_weight,
        time_weight,
    )


@triton.jit
def own_rows(R, BLOCK_R: tl.constexpr):
    """The program's rows and which of them there are. Those past the end repeat the last row: they
    are read without a mask, and never written."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    return tl.minimum(row, R - 1), row < R


# --- forward --------------------------------------------------------------------------------------


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


# --- backward -------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["R"])
def velocity_adjoint_kernel(
    bias, gain, offset, z_weight, time_weight, bias_stride, gain_stride, offset_stride,
    z,  # [R, Q]
    flow_time,  # [R, 1] or [R, Q]
    grad_velocity,  # [R, Q]
    grad_offset,  # [R]
    grad_z,  # [R, Q]
    grad_time,  # [R, Q] with TIME_PER_QUANTILE
    R, z_stride, time_stride, grad_stride,
    Q: tl.constexpr, W: tl.constexpr, TIME_PER_QUANTILE: tl.constexpr, SIGMOID: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_Q: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    row, there = own_rows(R, BLOCK_R)
    field = field_rows(row, bias, gain, offset, z_weight, time_weight,
                       bias_stride, gain_stride, offset_stride)  # fmt: skip
    rows = row[:, None]
    total = tl.zeros((BLOCK_R, BLOCK_Q), tl.float32)
    for first in tl.range(0, Q, BLOCK_Q):
        q = first + tl.arange(0, BLOCK_Q)[None, :]
        wanted = there[:, None] & (q < Q)
        particles = tl.load(z + rows * z_stride + q, mask=q < Q, other=0.0).to(tl.float32)
        g = tl.load(grad_velocity + rows * grad_stride + q, mask=q < Q, other=0.0).to(tl.float32)
        if TIME_PER_QUANTILE:
            s = tl.load(flow_time + rows * time_stride + q, mask=q < Q, other=0.0).to(tl.float32)
        else:
            s = tl.load(flow_time + rows * time_stride).to(tl.float32)
        _, by_z, by_s = velocity_and_slopes(particles, s, field, W, SIGMOID, UNROLL)
        tl.store(grad_z + rows * Q + q, g * by_z, mask=wanted)
        if TIME_PER_QUANTILE:
            tl.store(grad_time + rows * Q + q, g * by_s, mask=wanted)
        total += g
    tl.store(grad_offset + row, tl.sum(total, 1), mask=there)


@triton.jit(do_not_specialize=["R"])
def adjoint_kernel(
    bias, gain, offset, z_weight, time_weight, bias_stride, gain_stride, offset_stride,
    start,  # [R]
    end,  # [R]
    path,  # [R, steps, Q], states before each step
    grad_out,  # [R, Q], or [R, steps + 1, Q] with TRAJECTORY
    stages,  # [R, steps, STAGES, Q], where each slope was taken; unused with one stage
    grad_slopes,  # [R, steps, STAGES, Q]
    grad_offset,  # [R]
    grad_base,  # [R, Q]
    grad_span,  # [R], through the step size alone, with TIME_GRAD
    R, steps, start_stride, end_stride, grad_stride,
    Q: tl.constexpr, W: tl.constexpr, METHOD: tl.constexpr, TRAJECTORY: tl.constexpr,
    TIME_GRAD: tl.constexpr, SIGMOID: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_Q: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    STAGES: tl.constexpr = stages_of(METHOD)
    row, there = own_rows(R, BLOCK_R)
    field = field_rows(row, bias, gain, offset, z_weight, time_weight,
                       bias_stride, gain_stride, offset_stride)  # fmt: skip
    rows = row[:, None]
    s0 = tl.load(start + rows * start_stride).to(tl.float32)
    span = tl.load(end + rows * end_stride).to(tl.float32) - s0
    step = span / steps
    total = tl.zeros((BLOCK_R, BLOCK_Q), tl.float32)
    by_step = tl.zeros((BLOCK_R, BLOCK_Q), tl.float32)
    for first in tl.range(0, Q, BLOCK_Q):
        q = first + tl.arange(0, BLOCK_Q)[None, :]
        wanted = there[:, None] & (q < Q)
        grads = grad_out + rows * grad_stride + q
        if TRAJECTORY:
            grads += steps * Q
        g = tl.load(grads, mask=q < Q, other=0.0).to(tl.float32)
        for remaining in tl.range(0, steps):
            k = steps - 1 - remaining
            z0 = tl.load(path + (rows * steps + k) * Q + q, mask=q < Q, other=0.0)
            # Slopes v and their derivatives j, stage after stage.
            v0, j0, _ = velocity_and_slopes(
                z0, s0 + span * (k / steps), field, W, SIGMOID, UNROLL
            )  # fmt: skip
            if STAGES > 1:
                z1 = advance(z0, step, matrix_of(METHOD, 1, 0), v0)
                s = s0 + span * ((k + node_of(METHOD, 1)) / steps)
                v1, j1, _ = velocity_and_slopes(z1, s, field, W, SIGMOID, UNROLL)
            if STAGES > 2:
                z2 = advance(z0, step, matrix_of(METHOD, 2, 0), v0)
                z2 = advance(z2, step, matrix_of(METHOD, 2, 1), v1)
                s = s0 + span * ((k + node_of(METHOD, 2)) / steps)
                v2, j2, _ = velocity_and_slopes(z2, s, field, W, SIGMOID, UNROLL)
            if STAGES > 3:
                z3 = advance(z0, step, matrix_of(METHOD, 3, 0), v0)
                z3 = advance(z3, step, matrix_of(METHOD, 3, 1), v1)
                z3 = advance(z3, step, matrix_of(METHOD, 3, 2), v2)
                s = s0 + span * ((k + node_of(METHOD, 3)) / steps)
                v3, j3, _ = velocity_and_slopes(z3, s, field, W, SIGMOID, UNROLL)
            # d end / d slope_i = step u_i,  u_i = weight_i g + sum_j matrix_ji d end / d stage_j.
            at = (rows * steps + k) * STAGES * Q + q
            u0 = weight_of(METHOD, 0) * g
            direct = g
            if STAGES > 3:
                u3 = weight_of(METHOD, 3) * g
                d3 = step * u3 * j3
                direct += d3
                by_step += u3 * v3
                tl.store(stages + at + 3 * Q, z3, mask=wanted)
                tl.store(grad_slopes + at + 3 * Q, step * u3, mask=wanted)
                total += step * u3
                u0 += matrix_of(METHOD, 3, 0) * d3
            if STAGES > 2:
                u2 = weight_of(METHOD, 2) * g
                if STAGES > 3:
                    u2 += matrix_of(METHOD, 3, 2) * d3
                d2 = step * u2 * j2
                direct += d2
                by_step += u2 * v2
                tl.store(stages + at + 2 * Q, z2, mask=wanted)
                tl.store(grad_slopes + at + 2 * Q, step * u2, mask=wanted)
                total += step * u2
                u0 += matrix_of(METHOD, 2, 0) * d2
            if STAGES > 1:
                u1 = weight_of(METHOD, 1) * g
                if STAGES > 2:
                    u1 += matrix_of(METHOD, 2, 1) * d2
                if STAGES > 3:
                    u1 += matrix_of(METHOD, 3, 1) * d3
                d1 = step * u1 * j1
                direct += d1
                by_step += u1 * v1
                tl.store(stages + at, z0, mask=wanted)
                tl.store(stages + at + Q, z1, mask=wanted)
                tl.store(grad_slopes + at + Q, step * u1, mask=wanted)
                total += step * u1
                u0 += matrix_of(METHOD, 1, 0) * d1
            by_step += u0 * v0
            tl.store(grad_slopes + at, step * u0, mask=wanted)
            total += step * u0
            g = direct + step * u0 * j0
            if TRAJECTORY:
                grads -= Q
                g += tl.load(grads, mask=q < Q, other=0.0).to(tl.float32)
        tl.store(grad_base + rows * Q + q, g, mask=wanted)
    tl.store(grad_offset + row, tl.sum(total, 1), mask=there)
    if TIME_GRAD:
        tl.store(grad_span + row, tl.sum(by_step, 1) / steps, mask=there)


@triton.jit(do_not_specialize=["R"])
def coefficients_kernel(
    bias, gain, z_weight, time_weight, bias_stride, gain_stride,
    start,  # [R], or flow times [R, Q] with TIME_PER_QUANTILE
    end,  # [R]
    states,  # [R, steps, STAGES, Q], where each slope was taken
    grad_slopes,  # [R, steps, STAGES, Q]
    grad_bias,  # [R, W]
    grad_gain,  # [R, W]
    grad_z_weight,  # [programs, W], partial sums
    grad_time_weight,  # [programs, W], partial sums
    grad_start,  # [R]
    grad_end,  # [R]
    R, steps, start_stride, end_stride, state_stride, slope_stride,
    Q: tl.constexpr, W: tl.constexpr, METHOD: tl.constexpr, TIME_PER_QUANTILE: tl.constexpr,
    SIGMOID: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    STAGES: tl.constexpr = stages_of(METHOD)
    row, there = own_rows(R, BLOCK_R)
    rows = row[:, None]
    if TIME_PER_QUANTILE:
        # Then the time sums hold the gradient times the time, as a span of 1 from 0 would.
        s0 = tl.zeros((BLOCK_R, 1), tl.float32)
        span = s0 + 1.0
    else:
        s0 = tl.load(start + rows * start_stride).to(tl.float32)
        span = tl.load(end + rows * end_stride).to(tl.float32) - s0
    by_start = tl.zeros((BLOCK_R,), tl.float32)
    by_end = tl.zeros((BLOCK_R,), tl.float32)
    for first in tl.range(0, W, BLOCK_W):
        w = first + tl.arange(0, BLOCK_W)[None, :]
        b = tl.load(bias + rows * bias_stride + w, mask=w < W, other=0.0).to(tl.float32)
        zw = tl.load(z_weight + w, mask=w < W, other=0.0).to(tl.float32)
        tw = tl.load(time_weight + w, mask=w < W, other=0.0).to(tl.float32)
        sum_gain = tl.zeros((BLOCK_R, BLOCK_W), tl.float32)
        sum_bias = tl.zeros((BLOCK_R, BLOCK_W), tl.float32)
        sum_z = tl.zeros((BLOCK_R, BLOCK_W), tl.float32)
        sum_time = tl.zeros((BLOCK_R, BLOCK_W), tl.float32)
        for slope in tl.range(0, steps * STAGES):
            node = 0.0
            for stage in tl.static_range(1, STAGES):
                node = tl.where(slope % STAGES == stage, node_of(METHOD, stage), node)
            fraction = (slope // STAGES + node) / steps
            b_then = b + tw * (s0 + span * fraction)
            if TIME_PER_QUANTILE:
                b_then = b
            by_bias = tl.zeros((BLOCK_R, BLOCK_W), tl.float32)
            z_at = states + row * state_stride + slope * Q
            g_at = grad_slopes + row * slope_stride + slope * Q
            for q in tl.range(0, Q, loop_unroll_factor=UNROLL):
                z = tl.load(z_at + q).to(tl.float32)[:, None]
                g = tl.load(g_at + q).to(tl.float32)[:, None]
                x = b_then + zw * z
                if TIME_PER_QUANTILE:
                    s = tl.load(start + row * start_stride + q).to(tl.float32)[:, None]
                    x += tw * s
                sigma = sigmoid(x, SIGMOID)
                silu = x * sigma
                by_x = g * (sigma + (silu - silu * sigma))
                sum_gain += g * silu
                by_bias += by_x
                sum_z += by_x * z
                if TIME_PER_QUANTILE:
                    sum_time += by_x * s
            sum_bias += by_bias
            if not TIME_PER_QUANTILE:
                sum_time += fraction * by_bias
        g = tl.load(gain + rows * gain_stride + w, mask=w < W, other=0.0).to(tl.float32)
        wanted = there[:, None] & (w < W)
        by_bias = g * sum_bias
        by_fraction = g * sum_time
        tl.store(grad_bias + rows * W + w, by_bias, mask=wanted)
        tl.store(grad_gain + rows * W + w, sum_gain, mask=wanted)
        by_start += tl.sum(tw * (by_bias - by_fraction), 1)
        by_end += tl.sum(tw * by_fraction, 1)
        by_zw = tl.sum(tl.where(wanted, g * sum_z, 0.0), 0)
        by_tw = tl.sum(tl.where(wanted, s0 * by_bias + span * by_fraction, 0.0), 0)
        unit = first + tl.arange(0, BLOCK_W)
        partial = tl.program_id(0).to(tl.int64) * W + unit
        tl.store(grad_z_weight + partial, by_zw, mask=unit < W)
        tl.store(grad_time_weight + partial, by_tw, mask=unit < W)
    tl.store(grad_start + row, by_start, mask=there)
    tl.store(grad_end + row, by_end, mask=there)


# --- launchers ------------------------------------------------------------------------------------

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


def own_or_sum(per_row: Tensor, like: Tensor) -> Tensor:
    """The gradient [R, n] of a tensor [R, n], or its sum over rows for one that all rows share."""
    if per_row.shape[0] != like.shape[0]:
        per_row = per_row.sum(0, keepdim=True)
    return per_row.to(like.dtype)


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
        own_or_sum(grad_z, z),
        own_or_sum(grad_times if per_quantile else by_start.unsqueeze(1), flow_time),
    )


def integrate_flow_backward(
    grad_out, bias, gain, offset, z_weight, time_weight, path, start, end, shared_base,
    steps, method, trajectory, time_grad,
):  # fmt: skip
    rows, num_quantiles = grad_out.shape[0], grad_out.shape[-1]
    base = grad_out.new_empty((1 if shared_base else rows, num_quantiles))
    if rows == 0:
        inputs = (bias, gain, offset, z_weight, time_weight, base, start, end)
        return tuple(torch.zeros_like(tensor) for tensor in inputs)
    field = laid_out(FlowField(bias, gain, offset, z_weight, time_weight))
    starts, ends = spread(start, rows), spread(end, rows)
    grads = dispatch.with_contiguous_rows(grad_out.flatten(1))
    path = path.flatten(1)

    grad_bias, grad_gain = (torch.empty_like(t, memory_format=_ROWS) for t in (bias, gain))
    grad_offset = torch.empty_like(offset, memory_format=_ROWS)
    grad_base = _per_row(base, rows, num_quantiles)
    by_span, by_start, by_end = (_per_row(bias, rows) for _ in range(3))
    launch = LAUNCHES["adjoint"]
    tile = tile_of(launch.elements, num_quantiles)
    stages = len(METHODS[method].nodes)
    slopes = steps * stages * num_quantiles
    sums = []
    for chunk in row_chunks(rows, slopes * (1 if stages == 1 else 2)):
        part, chunk_path = rows_of(field, chunk), path[chunk]
        count = part.bias.shape[0]
        grad_slopes = _per_row(bias, count, slopes)
        # The only stage of euler's step is the state before it.
        states = chunk_path if stages == 1 else torch.empty_like(grad_slopes)
        adjoint_kernel[(triton.cdiv(count, tile.rows),)](
            *field_arguments(part), starts[chunk], ends[chunk], chunk_path, grads[chunk],
            states, grad_slopes, grad_offset[chunk], grad_base[chunk], by_span[chunk],
            count, steps, starts.stride(0), ends.stride(0), grads.stride(0),
            Q=num_quantiles, W=bias.shape[1], METHOD=method, TRAJECTORY=trajectory,
            TIME_GRAD=time_grad, SIGMOID=sigmoid_of(field),
            BLOCK_R=tile.rows, BLOCK_Q=tile.columns, UNROLL=launch.unroll,
            num_warps=launch.warps, **OPTIONS,
        )  # fmt: skip
        outputs = (grad_bias[chunk], grad_gain[chunk], by_start[chunk], by_end[chunk])
        sums.append(
            coefficient_gradients(
                part, starts[chunk], ends[chunk], states, grad_slopes, outputs,
                num_quantiles, steps, method,
            )
        )  # fmt: skip
    weights = torch.stack(sums).sum(0)
    if time_grad:
        by_start, by_end = by_start - by_span, by_end + by_span
    return (
        grad_bias,
        grad_gain,
        grad_offset,
        weights[0].to(z_weight.dtype),
        weights[1].to(time_weight.dtype),
        own_or_sum(grad_base, base),
        own_or_sum(by_start.unsqueeze(1), start),
        own_or_sum(by_end.unsqueeze(1), end),
    )


_ROWS = torch.contiguous_format


def _per_row(like: Tensor, rows: int, columns: int | None = None) -> Tensor:
    """Uninitialised [rows], or [rows, columns]: in the dtype of ``like`` if that has a row for
    each, else float32, to be summed."""
    shape = (rows,) if columns is None else (rows, columns)
    own = columns is not None and like.shape == shape
    return torch.empty(shape, dtype=like.dtype if own else torch.float32, device=like.device)
