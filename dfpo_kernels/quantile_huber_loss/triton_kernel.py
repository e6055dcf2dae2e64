"""The quantile Huber loss and its gradients in Triton, in one pass over all pairs.

With c = clamp(u, -kappa, kappa), the loss of a pair is H(u) = c (u - c / 2) / kappa and its slope
H'(u) = c / kappa. Lanes are quantiles and the loop runs over targets, so that the loss and the
gradient of a quantile are sums in registers; for the gradient of the targets, the other way round.
No pair is ever stored, and no reduction across lanes stands in a loop.

Source of the loss: Dabney et al. 2018, arXiv 1710.10044.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from dfpo_kernels import _dispatch as dispatch

# --- launch parameters ----------------------------------------------------------------------------


class Launch(NamedTuple):
    elements: int  # of the tile that a program keeps in registers
    warps: int
    unroll: int  # of the inner loop
    reason: str


LAUNCH = Launch(
    512, 4, 8, "4 quantiles a thread share the load of a target; 8 loads in flight hide the cache"
)
# Below this kappa, 1 / kappa overflows, and H is the pinball |u| to within kappa / 2.
LEAST_KAPPA = 1e-30

# --- forward and gradients ------------------------------------------------------------------------


@triton.jit
def weighted_slope(u, tau, kappa, PINBALL: tl.constexpr):
    """|tau - 1{u < 0}| times c, where c is the sign of u for the pinball loss."""
    if PINBALL:
        c = tl.where(u > 0.0, 1.0, tl.where(u < 0.0, -1.0, u))
    else:
        c = tl.minimum(tl.maximum(u, -kappa), kappa)
    return tl.where(u < 0.0, 1.0 - tau, tau) * c, c


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
    block = min(triton.next_power_of_2(max(num_quantiles, num_targets)), 64)
    block_rows = LAUNCH.elements // block
    quantile_huber_kernel[(triton.cdiv(rows, block_rows),)](
        quantiles, targets, taus.contiguous(), *outputs,
        rows, quantiles.stride(0), targets.stride(0), kappa,
        weight / num_targets / (1.0 if pinball else kappa),
        Q=num_quantiles, P=num_targets, PINBALL=pinball,
        QUANTILE_GRAD=quantile_grad, TARGET_GRAD=target_grad,
        BLOCK_R=block_rows, BLOCK_Q=block, UNROLL=LAUNCH.unroll,
        num_warps=LAUNCH.warps, enable_fp_fusion=True,
    )  # fmt: skip
    return outputs
