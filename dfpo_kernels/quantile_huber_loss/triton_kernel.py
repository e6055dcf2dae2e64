"""The quantile Huber loss and its gradients in Triton.

Short rows, one pass over all pairs: with c = clamp(u, -kappa, kappa), the loss of a pair is
H(u) = c (u - c / 2) / kappa and its slope H'(u) = c / kappa. Lanes are quantiles and the loop runs
over targets, so that the loss and the gradient of a quantile are sums in registers; for the
gradient of the targets, the other way round. No pair is ever stored, and no reduction across lanes
stands in a loop.

Long rows, O((Q + P) log P) as in csrc/cpu/quantile_huber_loss.cpp: a program sorts the targets of a
row and finds, for each quantile, which lie more than kappa below it, nearer below, nearer above and
further above; what each part adds are differences of running sums. For the gradient of the targets
the quantiles are sorted in the same way. Rows that are not finite go through all pairs.

Source of the loss: Dabney et al. 2018, arXiv 1710.10044.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dfpo_kernels import _dispatch as dispatch
from dfpo_kernels.integrate_flow.triton_launch import Launch

# --- launch parameters ----------------------------------------------------------------------------


LAUNCH = Launch(
    512, 4, 8, "4 quantiles a thread share the load of a target; 8 loads in flight hide the cache"
)
# Of the longer row of a program that sorts: more of them, with their keys and running sums, spill.
NUMBERS_PER_THREAD = 2
# Rows of at least and at most this many quantiles and targets are sorted. By instructions of the
# compiled code for both gradients, sorting takes 0.6 of what all pairs take at 200 numbers, 0.26 at
# 512, and 3.7 times as many at 64; at 2048 it spills.
LEAST_LONG, MOST_LONG = 192, 1024
# Below this kappa, 1 / kappa overflows, and H is the pinball |u| to within kappa / 2.
LEAST_KAPPA = 1e-30

# --- forward and gradients ------------------------------------------------------------------------


@triton.jit
def weighted_slope(u, tau, kappa, PINBALL: tl.constexpr):
    """|tau - 1{u < 0}| times c, where c is the sign of u for the pinball loss."""
    if PINBALL:
        c = tl.where(u > 0.0, 1.0, tl.where(u < 0.0, -1.0, u))
    else:
        # A NaN stays one, in the gradient too.
        c = tl.maximum(u, -kappa, propagate_nan=tl.PropagateNan.ALL)
        c = tl.minimum(c, kappa, propagate_nan=tl.PropagateNan.ALL)
    return tl.where(u < 0.0, 1.0 - tau, tau) * c, c


@triton.jit
def all_pairs(
    row,  # [rows], each below R
    there,  # [rows], is it a row that nobody else writes
    quantiles, targets, taus, loss, grad_quantiles, grad_targets,
    quantile_stride, target_stride, kappa, scale,
    Q: tl.constexpr, P: tl.constexpr, PINBALL: tl.constexpr,
    QUANTILE_GRAD: tl.constexpr, TARGET_GRAD: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_Q: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    rows = row[:, None]
    row_loss = tl.zeros((BLOCK_R,), tl.float32)
    for first in tl.range(0, Q, BLOCK_Q):
        i = first + tl.arange(0, BLOCK_Q)[None, :]
        quantile = tl.load(quantiles + rows * quantile_stride + i, mask=i < Q, other=0.0)
        quantile = quantile.to(tl.float32)
        tau = tl.load(taus + i, mask=i < Q, other=0.0)
        slopes = tl.zeros((BLOCK_R, BLOCK_Q), tl.float32)
        losses = tl.zeros((BLOCK_R, BLOCK_Q), tl.float32)
        for p in tl.range(0, P, loop_unroll_factor=UNROLL):
            target = tl.load(targets + row * target_stride + p).to(tl.float32)
            u = target[:, None] - quantile
            weighted, c = weighted_slope(u, tau, kappa, PINBALL)
            slopes += weighted
            losses += weighted * (u if PINBALL else u - 0.5 * c)
        row_loss += tl.sum(tl.where(i < Q, losses, 0.0), 1)
        if QUANTILE_GRAD:
            tl.store(grad_quantiles + rows * Q + i, -scale * slopes, mask=there[:, None] & (i < Q))

    tl.store(loss + row, scale * row_loss, mask=there)
    if TARGET_GRAD:
        for first in tl.range(0, P, BLOCK_Q):
            p = first + tl.arange(0, BLOCK_Q)[None, :]
            target = tl.load(targets + rows * target_stride + p, mask=p < P, other=0.0)
            target = target.to(tl.float32)
            slopes = tl.zeros((BLOCK_R, BLOCK_Q), tl.float32)
            for i in tl.range(0, Q, loop_unroll_factor=UNROLL):
                quantile = tl.load(quantiles + row * quantile_stride + i).to(tl.float32)
                u = target - quantile[:, None]
                weighted, _ = weighted_slope(u, tl.load(taus + i), kappa, PINBALL)
                slopes += weighted
            tl.store(grad_targets + rows * P + p, scale * slopes, mask=there[:, None] & (p < P))


@triton.jit(do_not_specialize=["R"])
def quantile_huber_kernel(
    quantiles,  # [R, Q]
    targets,  # [R, P]
    taus,  # [Q]
    loss,  # [R]
    grad_quantiles,  # [R, Q], with QUANTILE_GRAD
    grad_targets,  # [R, P], with TARGET_GRAD
    R, quantile_stride, target_stride, kappa, scale,
    Q: tl.constexpr, P: tl.constexpr, PINBALL: tl.constexpr,
    QUANTILE_GRAD: tl.constexpr, TARGET_GRAD: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_Q: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    there = row < R
    # Rows past the end repeat the last one: read without a mask, never written.
    row = tl.minimum(row, R - 1)
    all_pairs(
        row, there, quantiles, targets, taus, loss, grad_quantiles, grad_targets,
        quantile_stride, target_stride, kappa, scale,
        Q, P, PINBALL, QUANTILE_GRAD, TARGET_GRAD, BLOCK_R, BLOCK_Q, UNROLL,
    )  # fmt: skip


# --- long rows ------------------------------------------------------------------------------------

# A number that no finite one exceeds: where a row has ended.
END = tl.constexpr(float("inf"))


@triton.jit
def sort_with_places(x):
    """x in ascending order, and where each number stood: by its bits above its place."""
    n: tl.constexpr = x.shape[0]
    bits = x.to(tl.int32, bitcast=True)
    # Negative numbers compare in reverse by their bits.
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    keys = tl.sort((bits.to(tl.int64) << 32) | tl.arange(0, n).to(tl.int64))
    bits = (keys >> 32).to(tl.int32)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return bits.to(tl.float32, bitcast=True), (keys & 0xFFFFFFFF).to(tl.int32)


@triton.jit
def count_below(ordered, x, reach, INCLUSIVE: tl.constexpr):
    """How many of the ordered numbers are less than x + reach, or no greater. The difference from x
    is what is compared: beside a large x, reach may be less than a rounding error."""
    n: tl.constexpr = ordered.shape[0]
    low = tl.zeros(x.shape, tl.int32)
    for k in tl.static_range(0, steps_of(n)):
        # The last turn looks at the number at `low` itself.
        step = (n // 2) >> k
        probe = tl.gather(ordered, low + tl.maximum(step - 1, 0), 0)
        before = (probe - x <= reach) if INCLUSIVE else (probe - x < reach)
        low += tl.where(before, tl.maximum(step, 1), 0)

    return low


@triton.constexpr_function
def steps_of(n):
    return n.bit_length()


@triton.jit
def sum_of_first(running, count):
    """Of the first ``count`` numbers, from their inclusive running sums."""
    return tl.where(count > 0, tl.gather(running, tl.maximum(count - 1, 0), 0), 0.0)


@triton.jit
def part_sums(sums, squares, begin, end, q):
    """Targets [begin, end) in order: their count, sums of u and of u^2 against q."""
    count = (end - begin).to(tl.float64)
    total = sum_of_first(sums, end) - sum_of_first(sums, begin)
    square = sum_of_first(squares, end) - sum_of_first(squares, begin)
    return count, total - count * q, square - q * (2.0 * total - count * q)


@triton.jit
def quantile_side(quantile, tau, here, target, origin, kappa, inverse, P: tl.constexpr):
    """Loss and slope of each quantile against all targets."""
    ordered, _ = sort_with_places(target)
    y = tl.where(ordered < END, ordered.to(tl.float64) - origin, 0.0)
    sums, squares = tl.cumsum(y, 0), tl.cumsum(y * y, 0)
    far = count_below(ordered, quantile, -kappa, False)
    below = count_below(ordered, quantile, 0.0, False)
    near = count_below(ordered, quantile, kappa, True)
    q = quantile.to(tl.float64) - origin
    zero = tl.zeros_like(far)
    low_count, low, _ = part_sums(sums, squares, zero, far, q)
    _, under, under_square = part_sums(sums, squares, far, below, q)
    _, over, over_square = part_sums(sums, squares, below, near, q)
    high_count, high, _ = part_sums(sums, squares, near, zero + P, q)
    loss = (1.0 - tau) * (under_square * inverse * 0.5 - low - low_count * kappa * 0.5)
    loss += tau * (over_square * inverse * 0.5 + high - high_count * kappa * 0.5)
    slope = (1.0 - tau) * (under * inverse - low_count) + tau * (over * inverse + high_count)

    return tl.where(here, loss, 0.0), slope


@triton.jit
def target_side(target, quantile, tau, origin, kappa, inverse, Q: tl.constexpr):
    """Slope of each target against all quantiles."""
    ordered, place = sort_with_places(quantile)
    there = ordered < END
    weight = tl.where(there, tl.gather(tau, place, 0), 0.0).to(tl.float64)
    q = tl.where(there, ordered.to(tl.float64) - origin, 0.0)
    weights, sums, weighted = tl.cumsum(weight, 0), tl.cumsum(q, 0), tl.cumsum(weight * q, 0)
    far = count_below(ordered, target, -kappa, False)
    below = count_below(ordered, target, 0.0, True)
    near = count_below(ordered, target, kappa, True)
    y = target.to(tl.float64) - origin
    weight_far, weight_below = sum_of_first(weights, far), sum_of_first(weights, below)
    weight_near = sum_of_first(weights, near)
    weighted_below = sum_of_first(weighted, below)
    over = y * (weight_below - weight_far) - (weighted_below - sum_of_first(weighted, far))
    under = y * (near - below).to(tl.float64) - (
        sum_of_first(sums, near) - sum_of_first(sums, below)
    )
    under -= y * (weight_near - weight_below) - (sum_of_first(weighted, near) - weighted_below)
    weight_all = tl.sum(weight, 0)
    above = (Q - near).to(tl.float64) - (weight_all - weight_near)

    return weight_far + (over + under) * inverse - above


@triton.jit(do_not_specialize=["R"])
def quantile_huber_sorted_kernel(
    quantiles, targets, taus, loss, grad_quantiles, grad_targets,  # as above
    R, quantile_stride, target_stride, kappa, scale,
    Q: tl.constexpr, P: tl.constexpr, PINBALL: tl.constexpr,
    QUANTILE_GRAD: tl.constexpr, TARGET_GRAD: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_P: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i, p = tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_P)
    quantile = tl.load(quantiles + row * quantile_stride + i, mask=i < Q, other=END).to(tl.float32)
    target = tl.load(targets + row * target_stride + p, mask=p < P, other=END).to(tl.float32)
    tau = tl.load(taus + i, mask=i < Q, other=0.0)
    # Neither infinite nor NaN, nor so wide that running sums lose what lies within kappa.
    least = tl.minimum(tl.min(quantile, 0), tl.min(target, 0))
    most = tl.maximum(
        tl.max(tl.where(i < Q, quantile, -END), 0), tl.max(tl.where(p < P, target, -END), 0)
    )
    odd = tl.max(((quantile != quantile) & (i < Q)).to(tl.int32), 0)
    odd += tl.max(((target != target) & (p < P)).to(tl.int32), 0)
    width = most - least
    fine = (odd == 0) & (width < 1e30)
    if not PINBALL:
        fine = fine & (width < 1e7 * kappa)

    if PINBALL:
        reach = 0.0
        inverse = 0.0
        unit = scale
    else:
        reach = kappa
        inverse = 1.0 / tl.full((), kappa, tl.float64)
        # It divides by kappa, as all pairs need it.
        unit = scale * kappa

    if fine:
        origin = least.to(tl.float64)
        losses, slope = quantile_side(
            quantile, tau.to(tl.float64), i < Q, target, origin, reach, inverse, P
        )
        tl.store(loss + row, unit * tl.sum(losses, 0))
        if QUANTILE_GRAD:
            tl.store(grad_quantiles + row * Q + i, -unit * slope, mask=i < Q)
        if TARGET_GRAD:
            slope = target_side(target, quantile, tau, origin, reach, inverse, Q)
            tl.store(grad_targets + row * P + p, unit * slope, mask=p < P)
    else:
        own = row + tl.arange(0, 1)
        all_pairs(
            own, own < R, quantiles, targets, taus, loss, grad_quantiles, grad_targets,
            quantile_stride, target_stride, kappa, scale,
            Q, P, PINBALL, QUANTILE_GRAD, TARGET_GRAD, 1, BLOCK_Q, UNROLL,
        )  # fmt: skip


# --- launcher -------------------------------------------------------------------------------------


def quantile_huber_loss(quantiles, targets, taus, kappa, mean, quantile_grad, target_grad):
    rows, num_quantiles = quantiles.shape
    num_targets = targets.shape[1]
    loss = quantiles.new_empty((rows,), dtype=taus.dtype)
    grad_quantiles = loss.new_empty((rows, num_quantiles) if quantile_grad else (0,))
    grad_targets = loss.new_empty((rows, num_targets) if target_grad else (0,))
    outputs = (loss, grad_quantiles, grad_targets)
    if rows == 0:
        return outputs
    quantiles = dispatch.with_contiguous_rows(quantiles)
    targets = dispatch.with_contiguous_rows(targets)
    pinball = kappa < LEAST_KAPPA
    weight = 1.0 / num_quantiles if mean else 1.0
    arguments = (
        quantiles, targets, taus.contiguous(), *outputs,
        rows, quantiles.stride(0), targets.stride(0), kappa,
        weight / num_targets / (1.0 if pinball else kappa),
    )  # fmt: skip
    constants = {
        "Q": num_quantiles, "P": num_targets, "PINBALL": pinball,
        "QUANTILE_GRAD": quantile_grad, "TARGET_GRAD": target_grad, "enable_fp_fusion": True,
    }  # fmt: skip
    shortest, longest = sorted((num_quantiles, num_targets))

    if shortest >= LEAST_LONG and longest <= MOST_LONG and (kappa == 0 or not pinball):
        block = triton.next_power_of_2(longest)
        quantile_huber_sorted_kernel[(rows,)](
            *arguments, **constants, BLOCK_Q=triton.next_power_of_2(num_quantiles),
            BLOCK_P=triton.next_power_of_2(num_targets), UNROLL=LAUNCH.unroll,
            num_warps=max(LAUNCH.warps, block // (32 * NUMBERS_PER_THREAD)),
        )  # fmt: skip
        return outputs

    block = min(triton.next_power_of_2(max(num_quantiles, num_targets)), 64)
    block_rows = LAUNCH.elements // block
    quantile_huber_kernel[(triton.cdiv(rows, block_rows),)](
        *arguments, **constants, BLOCK_R=block_rows, BLOCK_Q=block, UNROLL=LAUNCH.unroll,
        num_warps=LAUNCH.warps,
    )  # fmt: skip

    return outputs
