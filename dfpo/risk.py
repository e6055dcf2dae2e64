"""Risk measures of a predicted return distribution, as weights over its quantiles.

A distortion measure is E_g[Z] = int F^-1(tau) dg(tau) for an increasing g from 0 to 1; on Q
quantiles at midpoints that is sum_i w_i q_i with w_i = g((i + 1)/Q) - g(i/Q). It is applied to the
critic's prediction alone, never to a reward: the advantage is then GAE with this value in place of
the mean (the two agree for the neutral g(tau) = tau).

Source: Wang 2000, "A class of distortion operators for pricing financial and insurance risks";
CVaR as a distortion: Dabney et al. 2018, arXiv 1806.06923.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# parameter, its default and what it must be
TAIL = (0.25, "in (0, 1]", lambda x: 0.0 < x <= 1.0)
KINDS = {
    "neutral": None,
    "cvar-lower": TAIL,  # mean of the lowest fraction TAIL of returns
    "cvar-upper": TAIL,  # mean of the highest fraction TAIL
    # g(tau) = Phi(Phi^-1(tau) + SHIFT): above 0 weighs low returns more, below 0 high ones
    "wang": (0.75, "a number in [-5, 5]", lambda x: -5.0 <= x <= 5.0),
}


class Risk(NamedTuple):
    kind: str
    parameter: float | None


def parse_risk(text: str) -> Risk:
    """Reads "neutral", "cvar-lower", "cvar-lower=0.1", "wang=-0.5"; ValueError says what is
    wrong."""
    kind, equals, number = text.strip().partition("=")
    if kind not in KINDS or (equals and KINDS[kind] is None):
        raise ValueError(
            f"is {text!r}, must be neutral, or one of cvar-lower, cvar-upper, wang with =NUMBER "
            "if wanted"
        )
    if KINDS[kind] is None:
        return Risk(kind, None)
    default, words, allowed = KINDS[kind]
    try:
        parameter = float(number) if equals else default
    except ValueError:
        raise ValueError(f"{text}: {number!r} must be {words}") from None
    if not allowed(parameter):
        raise ValueError(f"{text}: {number} must be {words}")
    return Risk(kind, parameter)


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
    """The risk measure of each predicted law; the mean where the risk is neutral."""
    if risk.kind == "neutral":
        return quantiles.mean(-1)
    weights = risk_weights(risk, quantiles.shape[-1]).to(quantiles.device)
    return (quantiles.sort(-1).values * weights).sum(-1)
