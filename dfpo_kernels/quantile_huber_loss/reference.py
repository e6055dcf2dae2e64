"""The definition of the quantile Huber loss in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def midpoints(num_quantiles: int, like: Tensor) -> Tensor:
    """Quantile levels tau_i = (i + 1/2) / Q, [Q], at least in float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    levels = torch.arange(num_quantiles, dtype=torch.float64, device=like.device)
    return ((levels + 0.5) / num_quantiles).to(dtype)


def quantile_huber_loss(
    quantiles: Tensor,  # [..., Q]
    targets: Tensor,  # [..., P]
    *,
    taus: Tensor | None = None,  # [Q]
    kappa: float = 0.05,
    quantile_reduction: str = "mean",
) -> Tensor:  # [...]
    dtype = torch.promote_types(torch.promote_types(quantiles.dtype, targets.dtype), torch.float32)
    levels = midpoints(quantiles.shape[-1], quantiles) if taus is None else taus
    # All pairs: quantile index on the second last axis, target index on the last.
    u = targets.to(dtype).unsqueeze(-2) - quantiles.to(dtype).unsqueeze(-1)

    if kappa == 0:
        huber = u.abs()
    else:
        huber = torch.where(u.abs() <= kappa, u**2 / (2 * kappa), u.abs() - kappa / 2)

    weight = (levels.to(dtype).unsqueeze(-1) - (u < 0).to(dtype)).abs()
    per_quantile = (weight * huber).mean(-1)
    return per_quantile.mean(-1) if quantile_reduction == "mean" else per_quantile.sum(-1)
