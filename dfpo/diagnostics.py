"""What a step's numbers say about the critic: logged, never trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from dfpo.config import Config
from dfpo.data import domain_of
from dfpo.rewards import Scored
from dfpo.rollout import Rollout, token_rewards
from dfpo.targets import Estimate, Targets
from dfpo_kernels import distributional_gae


@torch.no_grad()
def describe(
    rollout: Rollout, estimate: Estimate, targets: Targets, config: Config, metric: str
) -> dict[str, float]:
    """Metrics of one rollout; value metrics are against the clean return where they say so."""
    mask = rollout.samples.mask
    kept = mask.float()
    log_ratio = ((rollout.old_logprobs - rollout.ref_logprobs) * kept).sum(-1)
    values = estimate.quantiles.mean(-1)
    clean = rollout.clean_rewards.unsqueeze(-1).expand_as(values)
    _, last = token_rewards(rollout.rewards, mask)
    found = {
        "reward/noisy": rollout.rewards.mean(),
        "reward/clean": rollout.clean_rewards.mean(),
        "reward/corrupted": (rollout.rewards != rollout.clean_rewards).float().mean(),
        # Per answer, in nats: the k1 estimate summed over its tokens.
        "kl": log_ratio.mean(),
        "entropy": rollout.entropy[mask].mean(),
        "response_length": kept.sum(-1).mean(),
        "truncated": rollout.samples.truncated.float().mean(),
        "value/mean": values[mask].mean(),
        "value/spread": targets.spread[mask].mean(),
        "value/last_spread": targets.spread[last].mean(),
        "value/bias": (values - clean)[mask].mean(),
        "value/explained_variance": explained_variance(values[mask], clean[mask]),
        "advantage/std": targets.raw_advantages[mask].std(correction=0),
        "advantage/sign_agreement": _sign_agreement(rollout, estimate, targets, config),
    }
    metrics = {name: float(value) for name, value in found.items()}
    prefix = "accuracy" if metric == "accuracy" else "domain"
    names = [domain_of(row) for row in rollout.rows]
    for domain in dict.fromkeys(names):
        member = torch.tensor([name == domain for name in names], device=mask.device)
        metrics[f"{prefix}/{domain}"] = float(rollout.clean_rewards[member].mean())
    return metrics


def count_rewards(scored: Scored, config: Config) -> dict[str, float]:
    """What the rewards of one step were, in counts of answers, and the mean of each of several."""
    low, high = config.critic.return_low, config.critic.return_high
    values = scored.values[scored.values.isfinite()]
    found = {
        "reward/unscored": scored.unscored,
        "reward/invalid": scored.invalid,
        "reward/out_of_range": int(((values < low) | (values > high)).sum()),
    }
    parts = {name: scores[scores.isfinite()].mean() for name, scores in scored.parts.items()}
    return found | {f"reward/of/{name}": float(mean) for name, mean in parts.items()}


def explained_variance(predicted: Tensor, observed: Tensor) -> Tensor:  # [N], [N]
    """1 - Var(observed - predicted) / Var(observed); 0 where the observed do not vary."""
    variance = observed.var(correction=0)
    residual = (observed - predicted).var(correction=0)
    return torch.where(variance > 0, 1 - residual / variance.clamp_min(1e-12), 0.0)


def _sign_agreement(
    rollout: Rollout, estimate: Estimate, targets: Targets, config: Config
) -> Tensor:
    """Share of tokens whose advantage has the sign it would have under the clean reward."""
    mask = rollout.samples.mask
    rewards, last = token_rewards(rollout.clean_rewards, mask)
    values = estimate.quantiles.mean(-1, keepdim=True)
    clean, _ = distributional_gae(
        rewards, values, mask, gamma=config.target.gamma, lam=config.target.lam, done=last
    )
    return ((clean.squeeze(-1) > 0) == (targets.raw_advantages > 0))[mask].float().mean()
