"""NeMo-RL: its GAE by ``distributional_gae``, decoupled lambdas in one pass.

    from dfpo.integrations import nemo_rl
    nemo_rl.patch()    # at the top of examples/run_ppo.py; unpatch() restores it

NeMo-RL computes advantages in the driver's own process. Its critic stays scalar.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dfpo_kernels import distributional_gae

# The class that is patched, its method's name, its own method.
_originals: list[tuple[type, str, Any]] = []


def compute_advantage(
    self: Any,
    prompt_ids: Any,
    rewards: Tensor,  # [B]
    mask: Tensor,  # [B, T]
    values: Tensor,  # [B, T]
    reference_logprobs: Tensor | None = None,  # [B, T]
    logprobs: Tensor | None = None,  # [B, T]
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:  # [B, T], [B, T]
    """In place of ``GeneralizedAdvantageEstimator.compute_advantage``, number for number.

    Advantages at the policy's lambda, which may be one per sequence, and returns at the critic's
    (VAPO, arXiv 2504.05118) come of one pass where NeMo-RL makes two; the rest is its own.
    """
    token_rewards = self._build_token_level_rewards(rewards, mask, logprobs, reference_logprobs)
    advantages, returns = gae(
        token_rewards, values, mask, self.gae_gamma,
        self._resolve_lambda_policy(mask), self._resolve_lambda_value(),
    )  # fmt: skip
    if self.normalize_advantages:
        advantages = self._reward_whiten(advantages, mask)
    return advantages.masked_fill(~mask.bool(), 0), returns


def compute_gae(
    self: Any,
    token_level_rewards: Tensor,  # [B, T]
    values: Tensor,  # [B, T]
    mask: Tensor,  # [B, T]
    gae_lambda: float | Tensor | None = None,  # [B]
) -> tuple[Tensor, Tensor]:  # [B, T], [B, T]
    """In place of ``_compute_gae``, for whoever calls it."""
    lam = self.gae_lambda if gae_lambda is None else gae_lambda
    return gae(token_level_rewards, values, mask, self.gae_gamma, lam, lam)


def gae(
    rewards: Tensor,  # [B, T]
    values: Tensor,  # [B, T]
    mask: Tensor,  # [B, T]
    gamma: float,
    lam: float | Tensor,  # [B]
    target_lam: float | Tensor,  # [B]
) -> tuple[Tensor, Tensor]:  # [B, T], [B, T]
    # Results come in the dtype of the values; NeMo-RL's loop promotes.
    values = values.to(torch.promote_types(values.dtype, rewards.dtype))
    advantages, returns = distributional_gae(
        rewards, values.unsqueeze(-1), mask, gamma=gamma, lam=lam, target_lam=target_lam,
        mask_mode="carry",
    )  # fmt: skip
    return advantages.squeeze(-1), returns.squeeze(-1)


def patch(estimator: type | None = None) -> None:
    """Replaces two methods of ``estimator``, by default ``GeneralizedAdvantageEstimator``."""
    unpatch()
    if estimator is None:
        from nemo_rl.algorithms.advantage_estimator import (
            GeneralizedAdvantageEstimator as estimator,
        )

    for name, method in (("compute_advantage", compute_advantage), ("_compute_gae", compute_gae)):
        _originals.append((estimator, name, estimator.__dict__[name]))
        setattr(estimator, name, method)

    print(f"dfpo: NeMo-RL: {estimator.__name__} by distributional_gae", flush=True)


def unpatch() -> None:
    """Restores NeMo-RL as it was."""
    while _originals:
        estimator, name, original = _originals.pop()
        setattr(estimator, name, original)
