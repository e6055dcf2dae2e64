"""verl 0.9: its GAE by ``distributional_gae``, and critics of a distribution of returns.

    DFPO_VERL=1                             adv_estimator=gae through our scan; the critic as it is
    DFPO_VERL=critic=flow,num_quantiles=32  and the value flow as critic; trainer_mode=dfpo_sync

verl loads the entry point group ``verl.plugins`` in every process; ours (verl_plugin.py) calls
``patch`` where the variable is set and is inert where it is not. Quantiles ride in the batch's
``values`` and ``returns`` as [B, T, Q].
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dfpo.integrations.verl_settings import VARIABLE, Settings, cropped, parse_settings
from dfpo_kernels import distributional_gae, lambda_mixture_targets

DEFAULTS = Settings()

__all__ = ["VARIABLE", "Settings", "parse_settings", "patch", "unpatch"]


def gae_advantage_return(
    token_level_rewards: Tensor,  # [B, T]
    values: Tensor,  # [B, T] or [B, T, Q]
    response_mask: Tensor,  # [B, T]
    gamma: float,
    lam: float,
    *,
    settings: Settings = DEFAULTS,
) -> tuple[Tensor, Tensor]:  # [B, T], like values
    """In place of ``core_algos.compute_gae_advantage_return``: whitened advantages, and returns.

    [B, T] values give verl's numbers, masked tokens and whitening included. With [B, T, Q] the
    advantage is the mean over quantiles and the returns are samples of the TD(lambda) mixture of
    return distributions, drawn from a seed made of the values: the same batch has the same targets.
    """
    distribution = values.dim() == 3
    quantiles = cropped(values, response_mask) if distribution else values.unsqueeze(-1)
    # Results come in the dtype of the quantiles; verl's loop promotes.
    quantiles = quantiles.to(torch.promote_types(values.dtype, token_level_rewards.dtype))
    target_lam = lam if settings.target_lam is None else settings.target_lam

    with torch.no_grad():
        advantages, returns = distributional_gae(
            token_level_rewards, quantiles, response_mask, gamma=gamma,
            lam=length_adaptive_lam(response_mask, settings.length_alpha, lam),
            target_lam=target_lam, mask_mode="carry",
        )  # fmt: skip
        if distribution:
            returns = lambda_mixture_targets(
                token_level_rewards, quantiles, response_mask, gamma=gamma, lam=target_lam,
                seed=zlib.crc32(quantiles.float().mean(-1).cpu().numpy()), mask_mode="carry",
            )  # fmt: skip
            advantages = advantages.mean(-1)
        else:
            advantages, returns = advantages.squeeze(-1), returns.squeeze(-1)
        return whiten(advantages, response_mask), returns


def whiten(advantages: Tensor, mask: Tensor) -> Tensor:  # [B, T]
    """verl's ``masked_whiten`` in place: its temporaries take longer than the scan."""
    count = int(torch.count_nonzero(mask))
    if count < 2:
        from verl.utils.torch_functional import masked_whiten

        return masked_whiten(advantages, mask)  # raises what verl raises

    weight = (mask != 0).to(advantages.dtype)
    kept = advantages * weight
    advantages.sub_(kept.sum() / count)
    variance = torch.mul(advantages, weight, out=kept).square_().sum() / (count - 1)
    return advantages.mul_(torch.rsqrt(variance + 1e-8))


def length_adaptive_lam(
    mask: Tensor,  # [B, T]
    alpha: float,
    lam: float,
) -> float | Tensor:  # [B]
    """lam = 1 - 1 / max(alpha * tokens, 1) per sequence; ``lam`` where alpha is 0.

    Source: VAPO, arXiv 2504.05118.
    """
    if alpha == 0:
        return lam
    tokens = (mask != 0).sum(-1).float()
    return 1 - 1 / (alpha * tokens).clamp_min(1.0)


def data_metrics(batch: Any, use_critic: bool = True, *, compute: Callable) -> dict[str, Any]:
    """``compute_data_metrics``, which takes [B, T], on the means over quantiles.

    Adds ``critic/values/spread``: the standard deviation over quantiles, a mean over tokens. Near
    0 under noisy rewards the distribution has collapsed.
    """
    if not use_critic or batch.batch["values"].dim() == 2:
        return compute(batch=batch, use_critic=use_critic)
    mask = batch.batch["response_mask"].bool()
    values, returns = (cropped(batch.batch[key].float(), mask) for key in ("values", "returns"))
    reduced = batch.batch.clone(recurse=False)
    reduced["values"], reduced["returns"] = values.mean(-1), returns.mean(-1)
    metrics = compute(batch=dataclasses.replace(batch, batch=reduced), use_critic=True)
    spread = values.std(-1, correction=0)[mask].mean().item()

    return {**metrics, "critic/values/spread": spread}


_undo = contextlib.ExitStack()


def patch(settings: Settings = DEFAULTS) -> None:
    """Puts ``settings`` in place of those before; ``unpatch()`` takes all of it back."""
    unpatch()
    import verl
    from verl.trainer.ppo import core_algos, metric_utils, ray_trainer
    from verl.trainer.ppo.v1 import trainer_base

    gae = functools.partial(gae_advantage_return, settings=settings)
    _replace(core_algos.__dict__, "compute_gae_advantage_return", gae)
    _replace(core_algos.ADV_ESTIMATOR_REGISTRY, "gae", gae)
    metrics = functools.partial(data_metrics, compute=metric_utils.compute_data_metrics)

    for module in (metric_utils, ray_trainer, trainer_base):
        _replace(module.__dict__, "compute_data_metrics", metrics)

    if settings.critic != "scalar":
        from dfpo.integrations import verl_registry

        verl_registry.register(settings, _undo)

    print(f"dfpo: verl {verl.__version__}: GAE by distributional_gae, {settings}", flush=True)


def unpatch() -> None:
    """Restores verl as it was."""
    _undo.close()


def _replace(names: dict[str, Any], name: str, value: Any) -> None:
    _undo.callback(names.__setitem__, name, names[name])
    names[name] = value
