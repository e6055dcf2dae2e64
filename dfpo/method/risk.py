"""Risk measures of a predicted return distribution, as weights over its quantiles.

A distortion measure is E_g[Z] = int F^-1(tau) dg(tau) for an increasing g from 0 to 1; on Q
quantiles at midpoints that is sum_i w_i q_i with w_i = g((i + 1)/Q) - g(i/Q). It is applied to the
critic's prediction alone, never to a reward: the advantage is then GAE with this value in place of
the mean (the two agree for the neutral g(tau) = tau).

Source: Wang 2000, "A class of distortion operators for pricing financial and insurance risks";
CVaR as a distortion: Dabney et al. 2018, arXiv 1806.06923.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfpo.config.risk import Risk


def risk_weights(risk: Risk, count: int) -> Tensor:  # [Q] float32, sum 1
    """Weight of each of ``count`` sorted quantiles."""
    levels = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    if risk.kind == "cvar-lower":
        distorted = (levels / risk.parameter).clamp_max(1)
    elif risk.kind == "cvar-upper":
        distorted = 1 - ((1 - levels) / risk.parameter).clamp_max(1)
    elif risk.kind == "wang":
        distorted = torch.special.ndtr(torch.special.ndtri(levels) + risk.parameter)
    else:
        distorted = levels

    return distorted.diff().float()


def risk_value(quantiles: Tensor, risk: Risk) -> Tensor:  # [..., Q] in any order -> [...]
    """The risk measure of each predicted distribution; the mean where the risk is neutral."""
    if risk.kind == "neutral":
        return quantiles.mean(-1)
    weights = risk_weights(risk, quantiles.shape[-1]).to(quantiles.device)
    return (quantiles.sort(-1).values * weights).sum(-1)
