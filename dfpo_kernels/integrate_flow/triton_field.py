"""What the flow's Triton kernels share: the velocity of some particles, and a solver's step.

A method is its row of ``METHODS``, read when a kernel is compiled.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dfpo_kernels.integrate_flow.reference import METHODS

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
