"""Policy losses: pure functions of token tensors -> (loss, metrics)."""

from __future__ import annotations

import torch
from torch import Tensor

# Bounds before exp, so that a wild ratio cannot overflow.
LOG_RATIO_LIMIT = 20.0
KL_LIMIT = 10.0


def ppo_clip_loss(
    logprobs: Tensor,  # [B, T]
    old_logprobs: Tensor,  # [B, T]
    advantages: Tensor,  # [B, T]
    mask: Tensor,  # [B, T] bool
    *,
    clip: float,
    dual_clip: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped policy objective, a mean over answer tokens.

        rho = exp(logp - logp_old),   L = -min(rho A, clamp(rho, 1 - clip, 1 + clip) A)

    and, where A < 0 and ``dual_clip`` > 0, L is at most -dual_clip A.

    Source: Schulman et al. 2017, arXiv 1707.06347; dual clip: Ye et al. 2020, arXiv 1912.09729.
    """
    log_ratio = (logprobs - old_logprobs)[mask].clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio, advantage = log_ratio.exp(), advantages[mask]
    clipped = ratio.clamp(1 - clip, 1 + clip)
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    if dual_clip:
        bound = -dual_clip * advantage
        loss = torch.where(advantage < 0, torch.minimum(loss, bound), loss)
    outside = ((ratio - clipped).abs() > 0).float().mean()
    return loss.mean(), {"clip_fraction": outside.detach(), "ratio_max": ratio.detach().max()}


def kl_loss(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:  # [B, T] each
    """Mean over answer tokens of the k3 estimate of KL(policy || reference).

        k3 = exp(d) - d - 1,  d = logp_ref - logp

    Source: Schulman 2020, "Approximating KL divergence".
    """
    d = (ref_logprobs - logprobs)[mask].clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return (d.exp() - d - 1).clamp_max(KL_LIMIT).mean()
