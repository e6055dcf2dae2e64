"""Rollout + estimate -> advantages for the policy, targets for the critic."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from dfpo.config import Config
from dfpo.config.choices import ADVANTAGES
from dfpo.config.draws import Stream, uniforms
from dfpo.config.rules import is_read, value_range
from dfpo.config.types import CriticTargets, Estimate, Rollout, Targets
from dfpo.method.advantages import Returns
from dfpo.method.losses import importance_weights, masked_mean
from dfpo_kernels import FlowField, distributional_gae
from dfpo_kernels.nn import PathTargets

# Advantages of unlike prompts share one scale; those of a group have been standardised in it.
WHITENED = ("gae", "rank", "return")


@torch.no_grad()
def compute_targets(
    rollout: Rollout, estimate: Estimate | None, config: Config, step: int
) -> Targets:
    """Advantages, bounded and whitened as the configuration asks, and critic targets."""
    settings, mask = config.target, rollout.samples.mask
    returns = Returns(rollout, rollout.rewards, estimate, config)
    raw = ADVANTAGES[settings.advantage].load()(returns)

    advantages = raw
    if settings.advantage_clip:
        low, high = value_range(config)
        bound = settings.advantage_clip * (high - low)
        advantages = advantages.clamp(-bound, bound)
    if settings.advantage in WHITENED:
        advantages = whiten(advantages, mask)

    return Targets(
        advantages=torch.where(mask, advantages, 0.0),
        raw_advantages=raw,
        clean_advantages=clean_advantages(raw, returns),
        critic=None if estimate is None else critic_targets(returns, step),
        weights=engine_weights(rollout, config),
    )


def engine_weights(rollout: Rollout, config: Config) -> Tensor | None:  # [B, T]
    """Importance weights of the tokens, where an engine with log-probabilities of its own drew
    them and ``policy.importance_clip`` is on."""
    drawn, bound = rollout.samples.logprobs, config.policy.importance_clip
    if drawn is None or not bound or not is_read(config, "policy.importance_clip"):
        return None
    return importance_weights(rollout.old_logprobs, drawn, rollout.samples.mask, bound)[0]


def critic_targets(returns: Returns, step: int) -> CriticTargets:
    """What the critic regresses to, of the kind that ``target.kind`` names."""
    estimate, settings = returns.estimate, returns.config.target
    quantiles = returns.traced[1]
    mean = quantiles.mean(-1)
    if settings.kind == "lambda_mixture":
        quantiles = returns.mixture(settings.target_lam)
    elif settings.kind == "expected":
        quantiles = mean.unsqueeze(-1).expand_as(quantiles)

    path = None
    if estimate.field is not None:
        ids = returns.rollout.answers.sample_ids
        rewards, mask, config = returns.token_rewards, returns.mask, returns.config
        path = path_targets(estimate.field, rewards, mask, ids, config, step)

    return CriticTargets(
        quantiles=quantiles,
        mean=mean,
        spread=estimate.quantiles.std(-1, correction=0),
        base=estimate.base,
        path=path,
    )


def clean_advantages(raw: Tensor, returns: Returns) -> Tensor:  # [B, T]
    """The raw advantages had the clean rewards been told: a metric, never trained on.

    GAE and the reward to go are linear in the rewards, so theirs differ by the discounted sum of
    what noise added, one number a token in place of a distribution. A group's are a few numbers
    an answer. Only the rank, which is not linear, compares the clean returns anew.
    """
    rollout, config = returns.rollout, returns.config
    if rollout.rewards is rollout.clean_rewards:
        return raw
    # Nothing is wrong with clean rewards that a correction would know.
    told = dataclasses.replace(
        config, noise="none", target=dataclasses.replace(config.target, correction="none")
    )
    clean = Returns(rollout, rollout.clean_rewards, returns.estimate, told)
    if config.target.advantage not in ("gae", "return"):
        return ADVANTAGES[config.target.advantage].load()(clean)

    settings = config.target
    added = clean.token_rewards - returns.token_rewards
    no_values = torch.zeros_like(added).unsqueeze(-1)
    lam = settings.lam if settings.advantage == "gae" else 1.0
    change, _ = distributional_gae(added, no_values, returns.mask, gamma=settings.gamma, lam=lam)

    return raw + change[..., 0]


def whiten(advantages: Tensor, mask: Tensor) -> Tensor:  # [B, T]
    """Mean 0 and standard deviation 1 over answer tokens; 0 elsewhere, and where all are equal.

    In float64, so that what is left of equal numbers is rounding that can be told from a spread.
    """
    exact = torch.where(mask, advantages, 0.0).double()
    above = exact - masked_mean(exact, mask)
    scale = masked_mean(above.square(), mask).sqrt()
    spread = mask & (scale > 1e-12 * exact.abs().max())
    return torch.where(spread, above / (scale + 1e-8), 0.0).to(advantages.dtype)


def path_targets(
    field: FlowField,  # [B, T, ...]
    rewards: Tensor,  # [B, T]
    mask: Tensor,  # [B, T] bool
    sample_ids: Tensor,  # [B]
    config: Config,
    step: int,
) -> PathTargets:
    """For each token a later one, L >= 1 tokens on, L geometric with ``target.path_lam``. Tokens
    that do not count, a tool's among them, are no steps.

    Where that lies past the end the term is masked: the anchor covers those returns.
    """
    lam, gamma = config.target.path_lam, config.target.gamma
    length = mask.shape[1]

    draws = uniforms(config.seed, Stream.PATH, step, sample_ids, length).clamp_min(1e-7)
    horizon = torch.ones_like(draws, dtype=torch.int64)
    if lam > 0:
        horizon += (draws.log() / math.log(lam)).floor().long()

    # Which counted token each is, and where the n-th of them stands.
    step = (mask.cumsum(-1) - 1).clamp_min(0)
    place = torch.argsort(~mask, dim=-1, stable=True)
    exists = mask & (step + horizon < mask.sum(-1, keepdim=True))
    later = place.gather(1, (step + horizon).clamp_max(length - 1))

    # sum of gamma^(s - t) r_s over t <= s < t + L, from a running discounted sum
    scale = gamma ** step.to(draws.dtype)
    running = torch.nn.functional.pad((rewards * scale).cumsum(-1), (1, 0))
    between = (running.gather(1, later) - running[:, :-1]) / scale

    batch = torch.arange(mask.shape[0], device=mask.device).unsqueeze(-1)
    moved = FlowField(*(x[batch, later] for x in field[:3]), *field[3:])
    discount = gamma ** horizon.clamp_max(length).to(draws.dtype)
    return PathTargets(moved, between, discount, exists)
