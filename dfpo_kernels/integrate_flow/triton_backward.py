"""Backward kernels.

``adjoint``: lanes are particles. A velocity depends on its particle alone, so the same loop over
units gives the slope v and its derivative J = dv/dz, and the chain rule through stages and steps is
scalar arithmetic per particle. It leaves d loss / d slope.

``coefficients``: lanes are units. The loop over all particles of all slopes adds the gradients of a
row's coefficients into registers. Weights that rows share get one partial sum per program, added up
in a fixed order: no atomics, the same bits every time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dfpo_kernels.integrate_flow.triton_field import (
    advance,
    field_rows,
    matrix_of,
    node_of,
    own_rows,
    sigmoid,
    stages_of,
    velocity_and_slopes,
    weight_of,
)


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
