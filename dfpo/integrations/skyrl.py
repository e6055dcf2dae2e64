"""SkyRL: an advantage estimator for ``trainer.algorithm.advantage_estimator=dfpo``.

    from dfpo.integrations import skyrl
    skyrl.register()    # in the file that starts training, before validate_cfg

SkyRL's registry sends the estimator to its Ray processes, where dfpo must be installed. Written
against SkyRL 0.3.0. Its critic stays scalar.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from dfpo_kernels import distributional_gae

__all__ = ["advantages", "register", "unregister"]

NAME = "dfpo"
EPSILON = 1e-8  # what SkyRL adds to the variance


@torch.no_grad()
def advantages(
    token_level_rewards: Tensor,  # [B, T]
    response_mask: Tensor,  # [B, T]
    values: Tensor | None = None,  # [B, T]
    gamma: float = 1.0,
    lambd: float = 1.0,
    *,
    target_lam: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:  # [B, T], [B, T]
    """GAE's advantages at ``lambd``, whitened over the tokens that count, and the critic's targets
    at ``target_lam``: with ``target_lam`` as ``lambd``, the numbers of SkyRL's estimator "gae".

    A lambda of its own for the critic, usually 1, is that of VC-PPO (arXiv 2503.01491). Every token
    is a step, as in SkyRL, which tells an estimator nothing of tools; what stands before an answer
    does not reach it.

    Args:
        token_level_rewards, values: of response tokens, which SkyRL aligns at the right.
        response_mask: not 0 on response tokens, over which advantages are whitened.
        gamma, lambd: of ``trainer.algorithm``.
        target_lam: by default ``lambd``.

    Raises:
        ValueError: where there is no critic.
    """
    if values is None:
        raise ValueError(
            f"values: is None, must be a critic's; trainer.critic.model.path makes one, as the "
            f'estimator "{NAME}" needs'
        )
    wanted = torch.promote_types(values.dtype, token_level_rewards.dtype)
    traced, returns = distributional_gae(
        token_level_rewards, values.to(wanted).unsqueeze(-1), response_mask, gamma=gamma, lam=lambd,
        target_lam=target_lam, mask_mode="none",
    )  # fmt: skip
    return _whiten(traced.squeeze(-1), response_mask.bool()), returns.squeeze(-1)


def register(name: str = NAME, target_lam: float | None = None) -> None:
    """Adds ``advantages`` to SkyRL's ``AdvantageEstimatorRegistry``, once.

    Raises:
        ValueError: of SkyRL, where the name is another estimator's.
    """
    from skyrl.backends.skyrl_train.utils.ppo_utils import AdvantageEstimatorRegistry

    AdvantageEstimatorRegistry.register(name, functools.partial(advantages, target_lam=target_lam))
    print(f"dfpo: SkyRL: advantage estimator {name} by distributional_gae", flush=True)


def unregister(name: str = NAME) -> None:
    """Takes it out again."""
    from skyrl.backends.skyrl_train.utils.ppo_utils import AdvantageEstimatorRegistry

    AdvantageEstimatorRegistry.unregister(name)


def _whiten(advantages: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and sample variance 1 over counted tokens, all of which are 0 where there is one."""
    count = mask.sum()
    mean = torch.where(mask, advantages, 0.0).sum() / count.clamp_min(1)
    centred = advantages - mean
    variance = torch.where(mask, centred, 0.0).square().sum() / (count - 1).clamp_min(1)
    return centred * torch.rsqrt(variance + EPSILON)
