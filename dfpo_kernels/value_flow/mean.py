"""A distribution moved so that its mean, within known bounds, is a given one."""

from __future__ import annotations

import torch
from torch import Tensor

# Halvings of the interval of shifts: what they leave, 2^-24 of it, is mended in closed form.
HALVINGS = 24


def move_to_mean(
    quantiles: Tensor,  # [..., Q]
    mean: Tensor,  # [...]
    bounds: tuple[float, float] | None = None,
) -> Tensor:  # [..., Q]
    """Shifts each distribution by the number c for which its mean is ``mean`` after clipping.

        clip(q + c, low, high) with mean_i clip(q_i + c, low, high) = clip(mean, low, high)

    Clipping alone moves the mean of a wide distribution towards the middle of its range, the more
    the nearer it lies to an end: differences between states shrink. Without ``bounds`` c is
    mean - mean(q). Half precision is worked on in float32. Gradients flow into both arguments
    through every quantile off the bounds. Plain PyTorch: some 70 passes over [..., Q], a few per
    cent of a critic's step on a CPU.
    """
    dtype = torch.promote_types(quantiles.dtype, mean.dtype)
    if dtype in (torch.float16, torch.bfloat16):
        return move_to_mean(quantiles.float(), mean.float(), bounds).to(dtype)
    shift = (mean - quantiles.mean(-1)).unsqueeze(-1)
    if bounds is None:
        return quantiles + shift
    low, high = bounds
    wanted = mean.clamp(low, high)

    with torch.no_grad():
        # At these shifts all quantiles lie on one bound.
        below, above = low - quantiles.amax(-1), high - quantiles.amin(-1)
        for _ in range(HALVINGS):
            middle = (below + above) / 2
            small = (quantiles + middle.unsqueeze(-1)).clamp(low, high).mean(-1) < wanted
            below, above = torch.where(small, middle, below), torch.where(small, above, middle)
        moved = quantiles + ((below + above) / 2).unsqueeze(-1)
        inside = (moved > low) & (moved < high)
        fixed = torch.where(inside, 0.0, moved.clamp(low, high)).sum(-1)
        count = inside.sum(-1)

    # Which quantiles are off the bounds is known, so the shift follows from the sum over them.
    total = torch.where(inside, quantiles, 0.0).sum(-1)
    shift = (quantiles.shape[-1] * wanted - fixed - total) / count.clamp_min(1)
    return torch.where(inside, quantiles + shift.unsqueeze(-1), moved).clamp(low, high)
