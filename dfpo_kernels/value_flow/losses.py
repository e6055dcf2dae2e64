"""Terms of the value-flow loss that act on the one-step quantiles, in plain PyTorch.

They run on [R, Q] tensors once per update, a few per cent of a step, so no kernel is worth it.
Every function returns one value per row; nothing flows into targets. Tail terms take quantiles and
targets in ascending order, so that a caller sorts once for all of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def token_mean_loss(quantiles: Tensor, targets: Tensor) -> Tensor:
    """(mean_i q_i - mean_j y_j)^2; quantiles [R, Q], targets [R, P] -> [R].

    The target enters linearly, so the minimiser over many visits is the unbiased mean.
    """
    return (quantiles.mean(-1) - targets.mean(-1)).square()


def conditional_value_risk_loss(
    quantiles: Tensor, targets: Tensor, tail: float, contraction: float = 0.0
) -> Tensor:
    """Regresses both tail means of ``quantiles`` [R, Q] on those of the target distribution -> [R].

    With k = ceil(tail Q), a = k / Q and nu the k-th quantile (no gradient), the lower tail mean is
    regressed on the Rockafellar-Uryasev functional

        RU = mean_j [nu - relu(nu - y_j) / a],

    which is linear in the distribution of y and hence unbiased for single visits, where the squared
    difference of sample tail means is not. The upper tail mirrors it. ``contraction`` in [0, 1]
    moves the lower target towards the mean of the quantiles (0: neutral).

    Source: Rockafellar and Uryasev 2000, "Optimization of conditional value-at-risk".
    """
    k, level = _tail_size(quantiles, tail)
    with torch.no_grad():
        low, high = quantiles[:, k - 1 : k], quantiles[:, -k].unsqueeze(-1)
        lower = (low - (low - targets).relu() / level).mean(-1)
        lower = (1 - contraction) * lower + contraction * quantiles.mean(-1)
        upper = (high + (targets - high).relu() / level).mean(-1)

    lower_error = quantiles[:, :k].mean(-1) - lower
    upper_error = quantiles[:, -k:].mean(-1) - upper
    return lower_error.square() + upper_error.square()


def tail_mean_loss(quantiles: Tensor, targets: Tensor, tail: float) -> Tensor:
    """Squared differences of both sample tail means, [R, Q], [R, P] -> [R].

    DVPO's form (arXiv 2512.03847, Eq. 5 and 6 as reconstructed). With one sample of the return
    per visit it shrinks the tails; kept for the literal preset.
    """
    k, p = (_tail_size(x, tail)[0] for x in (quantiles, targets))
    lower = quantiles[:, :k].mean(-1) - targets[:, :p].mean(-1)
    upper = quantiles[:, -k:].mean(-1) - targets[:, -p:].mean(-1)
    return lower.square() + upper.square()


def mean_shift_loss(quantiles: Tensor, targets: Tensor) -> Tensor:
    """relu(mean y - mean q): DVPO's penalty on pessimism (Eq. 7), [R, Q], [R, P] -> [R].

    Biased upwards for single visits: a weight w moves the mean of a {0, 1} return from p towards
    p (1 + w). Kept small, for the literal preset.
    """
    return (targets.mean(-1) - quantiles.mean(-1)).relu()


def tail_shape_loss(quantiles: Tensor, targets: Tensor, tail: float, curvature: float) -> Tensor:
    """Lower tail no wider than the targets', upper tail no narrower, both convex outwards.

        relu(Var_low q - Var_low y) + relu(Var_high y - Var_high q)
          + curvature (relu(mean_low D2 q) + relu(-mean_high D2 q)),  D2 = second difference

    quantiles [R, Q], targets [R, P] -> [R]. DVPO's Eq. 8 and 9 (arXiv 2512.03847, reconstructed).
    """
    k, p = (_tail_size(x, tail)[0] for x in (quantiles, targets))
    lower = _variance(quantiles[:, :k]) - _variance(targets[:, :p])
    upper = _variance(targets[:, -p:]) - _variance(quantiles[:, -k:])
    shape = lower.relu() + upper.relu()

    if curvature and k >= 3:
        bend_low = quantiles[:, :k].diff(n=2).mean(-1).relu()
        bend_high = (-quantiles[:, -k:].diff(n=2).mean(-1)).relu()
        shape = shape + curvature * (bend_low + bend_high)

    return shape


def _tail_size(quantiles: Tensor, tail: float) -> tuple[int, float]:
    """How many of the Q quantiles the tail holds, and their exact share."""
    count = quantiles.shape[-1]
    k = max(1, math.ceil(tail * count - 1e-9))
    return k, k / count


def _variance(x: Tensor) -> Tensor:
    return x.var(-1, correction=0)
