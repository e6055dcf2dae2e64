"""Rollout + estimate -> advantages for the policy, target quantiles for the critic."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dfpo.config import Config
from dfpo.config.draws import Stream, uniforms
from dfpo.config.risk import parse_risk
from dfpo.method.losses import masked_mean
from dfpo.method.risk import risk_value
from dfpo.rollout.collect import Rollout, last_tokens
from dfpo_kernels import FlowField, distributional_gae, lambda_mixture_targets
from dfpo_kernels.nn import PathTargets


class Estimate(NamedTuple):
    """Values of the states before each answer token, and of the state after the last one."""

    quantiles: Tensor  # [B, T, Q], in units of return
    final: Tensor  # [B, Q]
    base: Tensor | None  # [B, T, Q], base noise where targets are paired with it by index
    field: FlowField | None  # [B, T, ...], frozen field V, for path-coupled matching


@dataclass(frozen=True)
class Targets:
    """What one step's update learns from; rows are answers. Without a critic there is nothing
    but advantages."""

    advantages: Tensor  # [B, T], what the policy's loss takes; 0 off the answer
    raw_advantages: Tensor  # [B, T], before bounds and whitening
    quantiles: Tensor | None  # [B, T, Q], what the critic regresses to
    mean: Tensor | None  # [B, T], the expected return at target.target_lam
    spread: Tensor | None  # [B, T], standard deviation of the estimate
    base: Tensor | None  # [B, T, Q]
    path: PathTargets | None  # [B, T]

    def select(self, rows: Tensor) -> Targets:
        chosen = (
            None if item is None else item.select(rows) if item is self.path else item[rows]
            for item in (getattr(self, field.name) for field in dataclasses.fields(self))
        )  # fmt: skip
        return Targets(*chosen)


@torch.no_grad()
def compute_targets(
    rollout: Rollout, estimate: Estimate | None, config: Config, step: int
) -> Targets:
    """Advantages, bounded and whitened as the configuration asks, and critic targets."""
    mask = rollout.samples.mask
    if estimate is None:
        raw, targets = group_advantages(rollout, config), (None,) * 5
    else:
        rewards, last = token_rewards(rollout, config, estimate)
        raw, targets = value_targets(rollout, estimate, rewards, last, config, step)
    advantages = raw
    if config.target.advantage_clip:
        bound = config.target.advantage_clip * reward_range(config)
        advantages = advantages.clamp(-bound, bound)
    if config.target.advantage in ("gae", "rank", "return"):
        advantages = whiten(advantages, mask)
    return Targets(torch.where(mask, advantages, 0.0), raw, *targets)


def reward_range(config: Config) -> float:
    return config.critic.return_high - config.critic.return_low


def token_rewards(
    rollout: Rollout, config: Config, estimate: Estimate | None = None
) -> tuple[Tensor, Tensor]:
    """Reward of each token [B, T], and the mark of each answer's last token [B, T] bool.

    The answer's reward r stands on its last token, cut to the reward's range where
    ``target.clip_reward`` says so and to V -+ ``target.winsorise`` ranges around the mean V
    predicted there; each token loses ``target.kl_penalty`` times log(policy / first policy).
    """
    mask, rewards = rollout.samples.mask, rollout.rewards
    last = last_tokens(mask)
    if config.target.clip_reward:
        rewards = rewards.clamp(config.critic.return_low, config.critic.return_high)
    if config.target.winsorise and estimate is not None:
        value = torch.where(last, estimate.quantiles.mean(-1), 0.0).sum(-1)
        window = config.target.winsorise * reward_range(config)
        rewards = rewards.clamp(value - window, value + window)
    found = torch.where(last, rewards.unsqueeze(-1), 0.0)
    if config.target.kl_penalty:
        excess = rollout.old_logprobs - rollout.ref_logprobs
        found = found - torch.where(mask, config.target.kl_penalty * excess, 0.0)
    return found, last


def group_advantages(rollout: Rollout, config: Config) -> Tensor:  # [B, T]
    """Advantages without a critic, every answer's the same on all its tokens but for "return".

        group        (r - mean) / (std + 1e-6) over the answers to one prompt   (GRPO)
        group_mean    r - mean                                                   (Dr. GRPO)
        return        sum of the token rewards from this token on                (REINFORCE++)

    std is that of a sample, as in verl; an answer alone with its prompt has the advantage 0.
    Sources: arXiv 2402.03300, 2503.20783, 2501.03262.
    """
    mask, settings = rollout.samples.mask, config.target
    rewards, _ = token_rewards(rollout, config)
    if settings.advantage == "return":
        nothing = torch.zeros_like(rewards).unsqueeze(-1)
        return distributional_gae(rewards, nothing, mask, gamma=settings.gamma, lam=1.0)[0][..., 0]
    rewards = torch.where(mask, rewards, 0.0).sum(-1)
    member = rollout.groups == rollout.groups.unsqueeze(-1)  # [B, B]
    count = member.sum(-1)
    mean = (member * rewards).sum(-1) / count
    advantage = rewards - mean
    if settings.advantage == "group":
        squares = (member * (rewards - mean.unsqueeze(-1)).square()).sum(-1)
        advantage = advantage / ((squares / (count - 1).clamp_min(1)).sqrt() + 1e-6)
    return torch.where(mask, advantage.unsqueeze(-1), 0.0)


def value_targets(
    rollout: Rollout,
    estimate: Estimate,
    rewards: Tensor,  # [B, T]
    last: Tensor,  # [B, T] bool
    config: Config,
    step: int,
) -> tuple[Tensor, tuple]:  # [B, T], the other fields of Targets
    """Advantages at ``target.lam`` by quantile-wise GAE, whose mean over quantiles is the GAE of
    the mean value, by GAE of the risk measure that ``risk`` names, or by rank; critic targets at
    ``target.target_lam``, by default as a mixture of n-step return laws, which unlike the
    quantile-wise average keeps their spread."""
    settings, mask = config.target, rollout.samples.mask
    bootstrap, done = None, last
    if settings.bootstrap_on_truncation:
        cut = rollout.samples.truncated.unsqueeze(-1)
        bootstrap, done = torch.where(cut, estimate.final, 0.0), last & ~cut
    shared = {"gamma": settings.gamma, "bootstrap": bootstrap, "done": done}
    advantages, targets = distributional_gae(
        rewards, estimate.quantiles, mask,
        lam=settings.lam, target_lam=settings.target_lam, **shared,
    )  # fmt: skip
    raw = advantages.mean(-1)
    risk = parse_risk(config.risk)
    if risk.kind != "neutral":
        final = (
            None
            if bootstrap is None
            else torch.where(cut, risk_value(estimate.final, risk).unsqueeze(-1), 0.0)
        )
        values = risk_value(estimate.quantiles, risk).unsqueeze(-1)
        raw = distributional_gae(
            rewards, values, mask, lam=settings.lam, **shared | {"bootstrap": final}
        )[0].squeeze(-1)

    def mixture(lam: float) -> Tensor:
        return lambda_mixture_targets(
            rewards, estimate.quantiles, mask,
            lam=lam, seed=config.seed, rows=rollout.sample_ids, **shared,
        )  # fmt: skip

    if settings.advantage == "rank":
        raw = rank_advantage(estimate.quantiles, mixture(settings.lam))
    mean = targets.mean(-1)
    if settings.kind == "lambda_mixture":
        targets = mixture(settings.target_lam)
    elif settings.kind == "expected":
        targets = mean.unsqueeze(-1).expand_as(targets)
    path = None
    if estimate.field is not None:
        path = path_targets(estimate.field, rewards, mask, rollout.sample_ids, config, step)
    return raw, (targets, mean, estimate.quantiles.std(-1, correction=0), estimate.base, path)


def rank_advantage(
    values: Tensor,  # [B, T, Q], of the predicted law Z
    returns: Tensor,  # [B, T, P], of the law G of the return that followed
) -> Tensor:  # [B, T]
    """P(Z < G) - P(Z > G), in [-1, 1]: by how sure the return was better than predicted, and not
    by how much, so that no reward, however large, counts for more than certainty.

    Z and G are drawn apart. Where both rewards and laws are 0 or 1 it is the difference of means.

    Source: this project's use of the law; as a measure of effect, the probability of superiority,
    McGraw and Wong 1992, "A common language effect size statistic".
    """
    law, returns = values.sort(-1).values, returns.contiguous()
    below = torch.searchsorted(law, returns)
    at_most = torch.searchsorted(law, returns, right=True)
    return ((below + at_most).float() / law.shape[-1] - 1).mean(-1)


def whiten(advantages: Tensor, mask: Tensor) -> Tensor:  # [B, T]
    """Mean 0 and standard deviation 1 over answer tokens; 0 elsewhere."""
    mean = masked_mean(advantages, mask)
    scale = masked_mean((advantages - mean).square(), mask).sqrt() + 1e-8
    return torch.where(mask, (advantages - mean) / scale, 0.0)


def path_targets(
    field: FlowField,  # [B, T, ...]
    rewards: Tensor,  # [B, T]
    mask: Tensor,  # [B, T], answers without gaps
    sample_ids: Tensor,  # [B]
    config: Config,
    step: int,
) -> PathTargets:
    """For each token a later one, L >= 1 tokens on, L geometric with ``target.path_lam``.

    Where that lies past the end the term is masked: the anchor covers those returns.
    """
    lam, gamma = config.target.path_lam, config.target.gamma
    length = mask.shape[1]
    draws = uniforms(config.seed, Stream.PATH, step, sample_ids, length).clamp_min(1e-7)
    horizon = torch.ones_like(draws, dtype=torch.int64)
    if lam > 0:
        horizon += (draws.log() / math.log(lam)).floor().long()
    position = torch.arange(length, device=mask.device)
    later = position + horizon
    inside = later < length
    later = later.clamp_max(length - 1)
    exists = inside & mask & mask.gather(1, later)
    # sum of gamma^(s - t) r_s over t <= s < t + L, from a running discounted sum
    scale = gamma ** position.to(draws.dtype)
    running = torch.nn.functional.pad((rewards * scale).cumsum(-1), (1, 0))
    between = (running.gather(1, later) - running[:, :-1]) / scale
    batch = torch.arange(mask.shape[0], device=mask.device).unsqueeze(-1)
    moved = FlowField(*(x[batch, later] for x in field[:3]), *field[3:])
    discount = gamma ** (later - position).to(draws.dtype)
    return PathTargets(moved, between, discount, exists)
