"""The sizes that are measured, those of a step of DFPO, and the peers' formulas.

R token rows, Q quantiles, W flow width, K solver steps; B answers, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfpo_kernels import FlowField

FLOW_SIZES = [(1024, 64, 64, 8)]  # R, Q, W, K
QUANTILE_SIZES = [(1024, 64, 64), (256, 200, 200)]  # R, Q, Q'
SCAN_SIZES = [(64, 1024, 32), (512, 1024, 1)]  # B, T, Q


def make_field(rows: int, width: int, requires_grad: bool) -> FlowField:
    """Random coefficients at the scale of a trained critic's."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).requires_grad_(requires_grad)

    return FlowField(
        normal(rows, width), normal(rows, width, scale=width**-0.5), normal(rows),
        normal(width), normal(width),
    )  # fmt: skip


def ridge_velocity(field: FlowField, z: Tensor, s: Tensor | float) -> Tensor:
    """The field in the form that torch.compile fuses best; z [R, Q] -> [R, Q]."""
    x = field.bias.unsqueeze(1) + z.unsqueeze(-1) * field.z_weight + field.time_weight * s
    return (torch.nn.functional.silu(x) * field.gain.unsqueeze(1)).sum(-1) + field.offset.unsqueeze(
        1
    )


def euler(field: FlowField, base: Tensor, steps: int) -> Tensor:
    """integrate_flow as a user writes it in PyTorch."""
    z = base
    for k in range(steps):
        z = z + ridge_velocity(field, z, k / steps) / steps
    return z


def pairwise_quantile_huber(quantiles: Tensor, targets: Tensor, kappa: float) -> Tensor:
    """The formula of QR-DQN implementations: all pairs as one tensor [R, Q, Q']."""
    count = quantiles.shape[-1]
    taus = (torch.arange(count) + 0.5) / count
    u = targets.unsqueeze(1) - quantiles.unsqueeze(2)
    huber = torch.where(u.abs() <= kappa, 0.5 * u**2 / kappa, u.abs() - 0.5 * kappa)
    return ((taus.view(1, -1, 1) - (u.detach() < 0).float()).abs() * huber).mean((1, 2))


def gae_loop(
    rewards: Tensor,  # [B, T, 1]
    values: Tensor,  # [B, T, Q]
    mask: Tensor,  # [B, T, 1] float
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """GAE as RLHF trainers compute it: a Python loop over tokens that carries through masks."""
    following = torch.zeros_like(values[:, 0])
    trace = torch.zeros_like(following)
    reversed_advantages = []
    for t in reversed(range(values.shape[1])):
        keep = mask[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        trace = keep * (delta + gamma * lam * trace) + (1 - keep) * trace
        following = keep * values[:, t] + (1 - keep) * following
        reversed_advantages.append(trace)
    advantages = torch.stack(reversed_advantages[::-1], 1)
    return advantages, advantages + values
