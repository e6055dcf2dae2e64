"""Rollout + estimate -> advantages for the policy, target quantiles for the critic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dfpo.config import Config
from dfpo.draws import Stream, uniforms
from dfpo.risk import parse_risk, risk_value
from dfpo.rollout import Rollout, token_rewards
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
    """What one step's update learns from; rows are answers."""

    advantages: Tensor  # [B, T], mean over quantiles, whitened over answer tokens
    raw_advantages: Tensor  # [B, T], before whitening
    quantiles: Tensor  # [B, T, Q], what the critic regresses to
    spread: Tensor  # [B, T], standard deviation of the estimate
    base: Tensor | None  # [B, T, Q]
    path: PathTargets | None  # [B, T]

    def select(self, rows: Tensor) -> Targets:
        return Targets(
            self.advantages[rows],
            self.raw_advantages[rows],
            self.quantiles[rows],
            self.spread[rows],
            None if self.base is None else self.base[rows],
            None if self.path is None else self.path.select(rows),
        )


@torch.no_grad()
def compute_targets(rollout: Rollout, estimate: Estimate, config: Config, step: int) -> Targets:
    """Advantages at ``target.lam`` by quantile-wise GAE, whose mean over quantiles is the GAE of
    the mean value, or by GAE of the risk measure that ``risk`` names; critic targets at
    ``target.target_lam``, by default as a mixture of n-step return laws, which unlike the
    quantile-wise average keeps their spread."""
    settings, mask = config.target, rollout.samples.mask
    rewards, last = token_rewards(rollout.rewards, mask)
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
    if settings.kind == "lambda_mixture":
        targets = lambda_mixture_targets(
            rewards, estimate.quantiles, mask,
            lam=settings.target_lam, seed=config.seed, rows=rollout.sample_ids, **shared,
        )  # fmt: skip
    path = None
    if estimate.field is not None:
        path = path_targets(estimate.field, rewards, mask, rollout.sample_ids, config, step)
    spread = estimate.quantiles.std(-1, correction=0)
    return Targets(whiten(raw, mask), raw, targets, spread, estimate.base, path)


def whiten(advantages: Tensor, mask: Tensor) -> Tensor:  # [B, T]
    """Mean 0 and standard deviation 1 over answer tokens; 0 elsewhere."""
    kept = advantages[mask]
    scale = kept.std(correction=0) + 1e-8
    return torch.where(mask, (advantages - kept.mean()) / scale, 0.0)


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
        horizon += (draws.log() / torch.tensor(lam).log()).floor().long()
    position = torch.arange(length, device=mask.device)
    later = position + horizon
    inside = later < length
    later = later.clamp_max(length - 1)
    exists = inside & mask & mask.gather(1, later)
    # sum of gamma^(s - t) r_s over t <= s < t + L, from a running discounted sum
    scale = torch.tensor(gamma, device=mask.device) ** position
    running = torch.nn.functional.pad((rewards * scale).cumsum(-1), (1, 0))
    between = (running.gather(1, later) - running[:, :-1]) / scale
    batch = torch.arange(mask.shape[0], device=mask.device).unsqueeze(-1)
    moved = FlowField(*(x[batch, later] for x in field[:3]), *field[3:])
    discount = torch.tensor(gamma, device=mask.device) ** (later - position)
    return PathTargets(moved, between, discount, exists)
