"""Selection of the tokens that a mask counts, whether or not the host knows how many they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def counted_tokens(
    mask: Tensor,  # [...]
    most: int | None = None,
    total: float | None = None,
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Selection of the R unmasked tokens, and the mean over them.

    Returns ``at``, [..., *] -> [R, *], and ``mean``, [R] -> []. With ``most`` R is that number
    whatever the mask, so that nothing waits for the device: places that are left over hold zeros
    and count nothing. With ``total`` the mean is a sum divided by it: the share of these tokens in
    a mean over more of them.
    """
    counts = mask.reshape(-1) != 0
    if most is None:
        index, mean = counts.nonzero().squeeze(-1), Tensor.mean
        if total is not None:

            def mean(x: Tensor) -> Tensor:
                return x.sum() / total
    else:
        index = counts.nonzero_static(size=most, fill_value=-1).squeeze(-1)
        there = index >= 0
        number = there.sum().clamp_min(1) if total is None else total

        def mean(x: Tensor) -> Tensor:
            return torch.where(there, x, 0.0).sum() / number

        index = index.clamp_min(0)

    def at(x: Tensor) -> Tensor:
        chosen = x.reshape(counts.shape[0], *x.shape[mask.dim() :])[index]
        if most is None:
            return chosen
        # What stands in places that are left over counts nothing, and must be finite for that.
        return torch.where(there.view(-1, *[1] * (chosen.dim() - 1)), chosen, 0)

    return at, mean
