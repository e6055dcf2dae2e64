"""What a step's numbers say about the critic: logged, never trained on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dfpo.config import Config
from dfpo.config.types import Estimate, Rollout, Scored, Targets
from dfpo.method.losses import importance_weights, masked_mean
from dfpo.rollout.collect import last_tokens
from dfpo.tasks.source import domain_of

# KL to the first policy, in nats, beyond which a run says so: of an answer, and for each token of
# long ones. None of the runs in results/ ended beyond 6.1.
FAR, FAR_PER_TOKEN = 10.0, 0.1
# What float32 makes of equal numbers, relative to their size, and some more.
ROUNDING = 1e-6


@torch.no_grad()
def rollout_metrics(
    rollout: Rollout,
    estimate: Estimate | None,
    returns: Estimate | None,
    targets: Targets,
    metric: str,
) -> dict[str, float]:
    """Metrics of a rollout; those of values, which need a critic, are against the clean return
    where they say so. ``estimate`` is in the critic's own space, ``returns`` the same in units of
    told rewards."""
    mask = rollout.samples.mask
    kept = mask.float()
    log_ratio = ((rollout.old_logprobs - rollout.ref_logprobs) * kept).sum(-1)
    numbers = {
        "reward/noisy": rollout.rewards.mean(),
        "reward/clean": rollout.clean_rewards.mean(),
        "reward/corrupted": (rollout.rewards != rollout.clean_rewards).float().mean(),
        # Per answer, in nats: the k1 estimate summed over its tokens.
        "kl": log_ratio.mean(),
        "entropy": rollout.entropy[mask].mean(),
        "response_length": kept.sum(-1).mean(),
        "truncated": rollout.samples.truncated.float().mean(),
        "advantage/std": targets.raw_advantages[mask].std(correction=0),
        "advantage/sign_agreement": _sign_agreement(targets, mask),
    }

    if estimate is not None:
        numbers |= _describe_values(rollout, returns)
        numbers["value/correlation"] = _correlation(rollout, estimate)
    metrics = {name: float(value) for name, value in numbers.items()}
    prefix = "accuracy" if metric == "accuracy" else "domain"
    names = [domain_of(row) for row in rollout.answers.rows]

    for domain in dict.fromkeys(names):
        member = torch.tensor([name == domain for name in names], device=mask.device)
        metrics[f"{prefix}/{domain}"] = float(rollout.clean_rewards[member].mean())

    return metrics


def _describe_values(rollout: Rollout, estimate: Estimate) -> dict[str, Tensor]:
    mask = rollout.samples.mask
    values, spread = estimate.quantiles.mean(-1), estimate.quantiles.std(-1, correction=0)
    clean = rollout.clean_rewards.unsqueeze(-1).expand_as(values)
    return {
        "value/mean": masked_mean(values, mask),
        "value/spread": masked_mean(spread, mask),
        "value/last_spread": masked_mean(spread, last_tokens(mask)),
        "value/bias": masked_mean(values - clean, mask),
        "value/explained_variance": explained_variance(values[mask], clean[mask]),
    }


def _correlation(rollout: Rollout, estimate: Estimate) -> Tensor:
    """Of mean values with clean returns over all tokens: what a critic knows, whatever the units of
    either. 0 where one of them does not vary."""
    mask, values = rollout.samples.mask, estimate.quantiles.mean(-1)
    clean = rollout.clean_rewards.unsqueeze(-1).expand_as(values)
    both = torch.stack([values[mask], clean[mask]]).double()
    varies = both.std(-1, correction=0) > ROUNDING * both.abs().amax(-1)
    return torch.where(varies.all(), both.corrcoef()[0, 1], 0.0)


@torch.no_grad()
def engine_metrics(rollout: Rollout, config: Config) -> dict[str, float]:
    """How far the distribution that drew the answers is from the policy's own; nothing where the
    policy itself drew."""
    samples = rollout.samples
    if samples.logprobs is None:
        return {}
    bound = config.policy.importance_clip or math.inf
    _, metrics = importance_weights(rollout.old_logprobs, samples.logprobs, samples.mask, bound)
    return {f"engine/{name}": float(value) for name, value in metrics.items()}


def count_rewards(scored: Scored, config: Config) -> dict[str, float]:
    """What the rewards of one step were, in counts of answers, and the mean of each of several."""
    low, high = config.reward.low, config.reward.high
    values = scored.values[scored.values.isfinite()]
    counts = {
        "reward/unscored": scored.unscored,
        "reward/invalid": scored.invalid,
        "reward/out_of_range": int(((values < low) | (values > high)).sum()),
    }
    parts = {name: scores[scores.isfinite()].mean() for name, scores in scored.parts.items()}
    logged = {f"reward/log/{name}": value for name, value in scored.logged.items()}

    return counts | {f"reward/of/{name}": float(mean) for name, mean in parts.items()} | logged


def warn_of_drift(record: dict[str, Any], config: Config) -> str | None:
    """A line where a step's policy is far from the one it began from: rewards, above all noisy
    ones, were never told there. None elsewhere."""
    kl, length = record.get("kl"), record.get("response_length")
    if kl is None or kl <= max(FAR, FAR_PER_TOKEN * (length or 0)):
        return None
    return (
        f"step {record['step']}: the policy is {kl:.1f} nats an answer from the one it began from, "
        "which often ends in a collapse; a larger --policy.kl-coef than "
        f"{config.policy.kl_coef:g} or a smaller --policy.learning-rate than "
        f"{config.policy.learning_rate:g} hold it nearer"
    )


def explained_variance(predicted: Tensor, observed: Tensor) -> Tensor:  # [N], [N]
    """1 - Var(observed - predicted) / Var(observed); 0 where the observed do not vary, or by no
    more than float32 rounds numbers of their size."""
    predicted, observed = predicted.double(), observed.double()
    variance = observed.var(correction=0)
    residual = (observed - predicted).var(correction=0)
    varies = variance.sqrt() > ROUNDING * observed.abs().max()
    return torch.where(varies, 1 - residual / variance.clamp_min(1e-300), 0.0)


def _sign_agreement(targets: Targets, mask: Tensor) -> Tensor:
    """Share of tokens whose advantage has the sign it would have under the clean reward."""
    same = (targets.clean_advantages > 0) == (targets.raw_advantages > 0)
    return masked_mean(same.float(), mask)
