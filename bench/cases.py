"""The sizes that are measured, those of a step of DFPO, and the peers' formulas.

R token rows, Q quantiles, W flow width, K solver steps; B answers, T tokens. Formulas are derived
from their definitions; no peer's code is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfpo_kernels import FlowField

FLOW = (2048, 64, 64, 8)  # R, Q, W, K
QUANTILES = [(4096, 64, 64), (256, 200, 200), (4, 2048, 2048)]  # R, Q, Q'
SCANS = [(64, 1024, 32), (512, 4096, 1), (1024, 8192, 1)]  # B, T, Q


def make_field(rows: int, width: int, requires_grad: bool) -> FlowField:
    """Random coefficients at the scale of a trained critic's."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).requires_grad_(requires_grad)

    return FlowField(
        normal(rows, width), normal(rows, width, scale=width**-0.5), normal(rows),
        normal(width), normal(width),
    )  # fmt: skip


def make_particles(rows: int, quantiles: int) -> Tensor:
    return torch.randn(rows, quantiles, generator=torch.Generator().manual_seed(1))


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


def pairwise_quantile_huber(
    quantiles: Tensor, targets: Tensor, kappa: float, quantile_reduction: str = "mean"
) -> Tensor:
    """The formula of QR-DQN implementations: all pairs as one tensor [R, Q, Q']. At kappa = 1,
    which sb3-contrib fixes, and reduction "sum" it is theirs."""
    count = quantiles.shape[-1]
    taus = (torch.arange(count) + 0.5) / count
    u = targets.unsqueeze(1) - quantiles.unsqueeze(2)
    huber = torch.where(u.abs() <= kappa, 0.5 * u**2 / kappa, u.abs() - 0.5 * kappa)
    per_quantile = ((taus.view(1, -1, 1) - (u.detach() < 0).float()).abs() * huber).mean(2)
    return per_quantile.sum(1) if quantile_reduction == "sum" else per_quantile.mean(1)


def gae_carry(
    rewards: Tensor,  # [B, T]
    values: Tensor,  # [B, T, Q]
    mask: Tensor,  # [B, T]
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """As verl and NeMo-RL: a Python loop that carries value and trace through masked tokens."""
    rewards, mask = rewards.unsqueeze(-1), mask.float().unsqueeze(-1)
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


def gae_zero(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """As OpenRLHF: masked rewards and values are zero, and each token is a step of the loop."""
    keep = mask.float().unsqueeze(-1)
    rewards, values = rewards.unsqueeze(-1) * keep, values * keep
    trace, following = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    reversed_advantages = []
    for t in reversed(range(values.shape[1])):
        trace = rewards[:, t] + gamma * following - values[:, t] + gamma * lam * trace
        following = values[:, t]
        reversed_advantages.append(trace)
    advantages = torch.stack(reversed_advantages[::-1], 1)
    return advantages, advantages + values


def gae_convolution(
    rewards: Tensor, values: Tensor, gamma: float, lam: float, negligible: float = 1e-7
) -> tuple[Tensor, Tensor]:
    """As torchrl's vectorised form for Q = 1 without masks: differences, then a convolution with
    powers of gamma * lam down to a negligible one."""
    values = values.squeeze(-1)
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    delta = rewards + gamma * following - values
    powers, decay = [1.0], gamma * lam
    while powers[-1] * decay > negligible and len(powers) < values.shape[1]:
        powers.append(powers[-1] * decay)
    kernel = torch.tensor(powers)
    padded = torch.nn.functional.pad(delta, (0, len(powers) - 1))
    advantages = torch.nn.functional.conv1d(padded.unsqueeze(1), kernel.view(1, 1, -1)).squeeze(1)
    return advantages.unsqueeze(-1), (advantages + values).unsqueeze(-1)


def half_of(moved: int) -> Tensor:
    """A tensor whose clone moves that many bytes: it reads and writes each of its own."""
    return torch.ones((moved + 1) // 2, dtype=torch.uint8)
