"""Policy losses: pure functions of token tensors -> (loss, metrics).

None waits for the device: means are weighted by the mask, nothing is selected by it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dfpo.config.types import Counts

# Bounds before exp, so that a wild ratio cannot overflow.
LOG_RATIO_LIMIT = 20.0
KL_LIMIT = 10.0


def masked_mean(
    values: Tensor,  # [B, T]
    mask: Tensor,  # [B, T] bool
    count: int | None = None,
) -> Tensor:
    """Mean over counted tokens; 0 where there is none. With ``count`` the sum over that number:
    the share of these tokens in a mean over more of them."""
    number = mask.sum().clamp_min(1) if count is None else count
    return torch.where(mask, values, 0.0).sum() / number


def token_average(
    values: Tensor, mask: Tensor, average: str, longest: int, counts: Counts | None = None
) -> Tensor:
    """One number from per-token losses [B, T], as ``policy.average`` names it.

    token       sum of all over the count of tokens                  (DAPO, verl's default)
    answer      mean over each answer's tokens, then over answers    (GRPO, arXiv 2402.03300)
    constant    sum of all over B ``longest``                        (Dr. GRPO, arXiv 2503.20783)

    ``counts`` are those of the whole minibatch where these tokens are a part of it.
    """
    if average == "token":
        return masked_mean(values, mask, counts and counts.tokens)
    sums = torch.where(mask, values, 0.0).sum(-1)
    per_answer = sums / (mask.sum(-1).clamp_min(1) if average == "answer" else longest)
    return answer_mean(per_answer, counts)


def answer_mean(values: Tensor, counts: Counts | None) -> Tensor:  # [B] -> scalar
    """Mean over answers; with ``counts`` their share in the mean over a minibatch."""
    return values.mean() if counts is None else values.sum() / counts.answers


def clipped_loss(
    logprobs: Tensor,  # [B, T]
    old_logprobs: Tensor,  # [B, T]
    advantages: Tensor,  # [B, T]
    mask: Tensor,  # [B, T] bool
    *,
    clip: float,
    dual_clip: float,
    clip_high: float | None = None,
    weights: Tensor | None = None,  # [B, T]
    average: str = "token",
    longest: int = 1,
    counts: Counts | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped policy objective, each token's times its weight, if any.

        rho = exp(logp - logp_old),   L = -min(rho A, clamp(rho, 1 - clip, 1 + clip_high) A)

    and, where A < 0 and ``dual_clip`` > 0, L is at most -dual_clip A; ``clip_high`` is by default
    ``clip``. See ``token_average`` for ``average``, ``longest`` and ``counts``.

    Source: Schulman et al. 2017, arXiv 1707.06347; dual clip: Ye et al. 2020, arXiv 1912.09729;
    separate upper clip: DAPO, arXiv 2503.14476.
    """
    ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    ratio = ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip:
        bound = -dual_clip * advantages
        loss = torch.where(advantages < 0, torch.minimum(loss, bound), loss)
    if weights is not None:
        loss = weights * loss
    tokens = counts and counts.tokens
    outside = masked_mean(((ratio - clipped).abs() > 0).float(), mask, tokens)
    metrics = {"clip_fraction": outside.detach(), "ratio_max": ratio.detach().max()}

    return token_average(loss, mask, average, longest, counts), metrics


def importance_weights(
    logprobs: Tensor,  # [B, T], of the policy as it sampled
    engine_logprobs: Tensor,  # [B, T], of the engine that drew the tokens
    mask: Tensor,  # [B, T] bool
    bound: float,
) -> tuple[Tensor, dict[str, Tensor]]:  # [B, T]
    """Truncated importance sampling: an engine draws from a distribution that differs from the
    trainer's by its kernels, its precision or its weights' age.

        w = min(exp(logp_trainer - logp_engine), bound)

    Constants of the step, 1 where nothing counts. The metrics: mean weight, share of tokens whose
    ratio is above the bound, and the k3 estimate of KL(engine || trainer) a token.

    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"; token-level, as verl's.
    """
    log_ratio = torch.where(mask, logprobs - engine_logprobs, 0.0)
    log_ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    weights = ratio.clamp_max(bound)
    metrics = {
        "weight": masked_mean(weights, mask),
        "truncated": masked_mean((ratio > bound).float(), mask),
        "kl": masked_mean(ratio - log_ratio - 1, mask),
    }

    return weights, metrics


def kl_loss(
    logprobs: Tensor,  # [B, T]
    ref_logprobs: Tensor,  # [B, T]
    mask: Tensor,  # [B, T] bool
    *,
    average: str = "token",
    longest: int = 1,
    counts: Counts | None = None,
) -> Tensor:
    """The k3 estimate of KL(policy || reference), averaged as the clipped objective is: GRPO has
    it within each answer's mean.

        k3 = exp(d) - d - 1,  d = logp_ref - logp

    Source: Schulman 2020, "Approximating KL divergence"; arXiv 2402.03300, Eq. 3 and 4.
    """
    d = torch.where(mask, ref_logprobs - logprobs, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return token_average((d.exp() - d - 1).clamp_max(KL_LIMIT), mask, average, longest, counts)


def trajectory_balance_loss(
    logprobs: Tensor,  # [B, T]
    old_logprobs: Tensor,  # [B, T]
    ref_logprobs: Tensor,  # [B, T]
    advantages: Tensor,  # [B, T], the answer's standardised reward on each of its tokens
    log_partition: Tensor,  # [B], log Z of the answer's prompt
    mask: Tensor,  # [B, T] bool
    *,
    beta: float,
    clip: float,
    clip_high: float | None = None,
    counts: Counts | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """FlowRL's squared residual of trajectory balance, a mean over answers.

        residual = log Z(x) + mean_t log p(y_t) - beta A - mean_t log p_ref(y_t)
        L = mean_answers w residual^2,   w = clamp(exp(mean_t (log p - log p_old)), ...) detached

    with w in [1 - clip, 1 + clip_high]: at zero residual the policy is the first policy tilted by
    exp(beta A) per token. No KL term stands beside it.

    Source: Zhu et al. 2025, arXiv 2509.15207, Eq. 6; the length-normalised clipped weight is that
    of its recipe for verl.
    """
    count = mask.sum(-1).clamp_min(1)

    def mean(values: Tensor) -> Tensor:  # [B, T] -> [B]
        return torch.where(mask, values, 0.0).sum(-1) / count

    residual = log_partition + mean(logprobs - ref_logprobs) - beta * mean(advantages)
    ratio = mean(logprobs.detach() - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    weight = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    metrics = {
        "clip_fraction": answer_mean(((ratio - weight).abs() > 0).float(), counts),
        "ratio_max": ratio.max(),
        "log_partition": answer_mean(log_partition.detach(), counts),
    }

    return answer_mean(weight * residual.square(), counts), metrics
