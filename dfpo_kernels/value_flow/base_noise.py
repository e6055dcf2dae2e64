"""Base noise, which the flow carries to returns: the grid of a readout, and draws of training."""

from __future__ import annotations

import torch
from torch import Tensor

# Draws are truncated: beyond it the field would extrapolate.
LIMIT = 3.0


def base_grid(num_quantiles: int) -> Tensor:
    """Midpoint quantiles of N(0, 1), Phi^-1((i + 1/2) / Q), rescaled to variance 1; float32 [Q]."""
    # Named, so that it is computed under torch.device("meta") too.
    index = torch.arange(num_quantiles, dtype=torch.float64, device="cpu")
    levels = (index + 0.5) / num_quantiles
    grid = torch.special.ndtri(levels)
    if num_quantiles > 1:
        grid = grid / grid.std(correction=0)
    return grid.float()


def stratified_noise(jitter: Tensor) -> Tensor:
    """One draw of N(0, 1) from each of Q shares of equal probability, in ascending order; uniforms
    in [0, 1) within the shares, [..., Q] -> [..., Q] within -+ LIMIT."""
    count = jitter.shape[-1]
    index = torch.arange(count, device=jitter.device)
    # Kept off 0 and 1, where the inverse normal is infinite.
    levels = ((index + jitter) / count).clamp(1e-6, 1 - 1e-6)
    return torch.special.ndtri(levels).clamp(-LIMIT, LIMIT)
