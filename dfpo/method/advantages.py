"""Advantages: each a function of ``Returns``, with a row in ``dfpo.config.choices``."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from dfpo.config import Config
from dfpo.config.risk import parse_risk
from dfpo.config.rules import value_range
from dfpo.config.types import Estimate, Rollout
from dfpo.method.risk import risk_value
from dfpo.rollout.collect import last_tokens
from dfpo_kernels import distributional_gae, lambda_mixture_targets


@dataclass(frozen=True)
class Returns:
    """The returns of a rollout as a critic's values continue them; each pass is made once."""

    rollout: Rollout
    rewards: Tensor  # [B], of the answers: those that are told, or the clean ones
    estimate: Estimate | None
    config: Config
    _mixtures: dict[float, Tensor] = field(default_factory=dict, repr=False)

    @property
    def mask(self) -> Tensor:  # [B, T] bool
        return self.rollout.samples.mask

    @cached_property
    def last(self) -> Tensor:  # [B, T] bool
        return last_tokens(self.mask)

    @cached_property
    def token_rewards(self) -> Tensor:  # [B, T]
        """The answer's reward r on its last token; each token loses ``target.kl_penalty`` times
        log(policy / first policy).

        r is cut to the reward's range where ``reward.clip`` says so, and to
        V -+ ``target.winsorise`` ranges around the mean V predicted before the last token.
        """
        settings, reward, rewards = self.config.target, self.config.reward, self.rewards
        if reward.clip:
            rewards = rewards.clamp(*value_range(self.config))
        if settings.winsorise and self.estimate is not None:
            value = torch.where(self.last, self.estimate.quantiles.mean(-1), 0.0).sum(-1)
            low, high = value_range(self.config)
            window = settings.winsorise * (high - low)
            rewards = rewards.clamp(value - window, value + window)

        on_token = torch.where(self.last, rewards.unsqueeze(-1), 0.0)
        if settings.kl_penalty:
            excess = self.rollout.old_logprobs - self.rollout.ref_logprobs
            on_token = on_token - torch.where(self.mask, settings.kl_penalty * excess, 0.0)
        return on_token

    @cached_property
    def ending(self) -> dict[str, Tensor | None]:
        """How an answer ends: ``done`` [B, T] where nothing follows, ``bootstrap`` [B, Q] where a
        truncated answer goes on with the value of its last state."""
        if not self.config.target.bootstrap_on_truncation:
            return {"bootstrap": None, "done": self.last}
        cut = self.rollout.samples.truncated.unsqueeze(-1)
        return {
            "bootstrap": torch.where(cut, self.estimate.final, 0.0),
            "done": self.last & ~cut,
        }

    @cached_property
    def traced(self) -> tuple[Tensor, Tensor]:  # [B, T, Q] each
        """Quantile-wise GAE: advantages at ``target.lam``, critic targets at
        ``target.target_lam``."""
        settings = self.config.target
        return distributional_gae(
            self.token_rewards, self.estimate.quantiles, self.mask,
            lam=settings.lam, target_lam=settings.target_lam, gamma=settings.gamma, **self.ending,
        )  # fmt: skip

    def mixture(self, lam: float) -> Tensor:  # [B, T, Q]
        """Draws from the mixture over n of the distributions of n-step returns, which unlike the
        quantile-wise average keeps their spread."""
        if lam not in self._mixtures:
            self._mixtures[lam] = lambda_mixture_targets(
                self.token_rewards, self.estimate.quantiles, self.mask,
                lam=lam, gamma=self.config.target.gamma, seed=self.config.seed,
                rows=self.rollout.answers.sample_ids, **self.ending,
            )  # fmt: skip
        return self._mixtures[lam]


def gae(returns: Returns) -> Tensor:  # [B, T]
    """The mean over quantiles of quantile-wise GAE, which is the GAE of the mean value; or the GAE
    of the risk measure that ``risk`` names.

    Source: Schulman et al. 2015, arXiv 1506.02438.
    """
    risk = parse_risk(returns.config.risk)
    if risk.kind == "neutral":
        return returns.traced[0].mean(-1)

    settings, ending = returns.config.target, returns.ending
    bootstrap = ending["bootstrap"]
    if bootstrap is not None:
        cut = returns.rollout.samples.truncated.unsqueeze(-1)
        final = risk_value(returns.estimate.final, risk).unsqueeze(-1)
        bootstrap = torch.where(cut, final, 0.0)

    values = risk_value(returns.estimate.quantiles, risk).unsqueeze(-1)
    return distributional_gae(
        returns.token_rewards, values, returns.mask,
        lam=settings.lam, gamma=settings.gamma, bootstrap=bootstrap, done=ending["done"],
    )[0].squeeze(-1)  # fmt: skip


def rank(returns: Returns) -> Tensor:  # [B, T]
    """``rank_advantage`` of the predicted values and the returns that followed, at
    ``target.lam``."""
    return rank_advantage(
        returns.estimate.quantiles, returns.mixture(returns.config.target.lam)
    )  # fmt: skip


def rank_advantage(
    values: Tensor,  # [B, T, Q], of the predicted distribution Z
    returns: Tensor,  # [B, T, P], of the distribution G of the return that followed
) -> Tensor:  # [B, T]
    """P(Z < G) - P(Z > G), in [-1, 1], for independent Z and G.

    It measures how surely the return was better than predicted, not by how much: no reward,
    however large, counts for more than certainty. Where rewards are 0 or 1 and both distributions
    lie on 0 and 1, it is the difference of the means.

    Source: this project's use of the distribution; as a measure of effect, the probability of
    superiority, McGraw and Wong 1992, "A common language effect size statistic".
    """
    predicted, returns = values.sort(-1).values, returns.contiguous()
    below = torch.searchsorted(predicted, returns)
    at_most = torch.searchsorted(predicted, returns, right=True)
    return ((below + at_most).float() / predicted.shape[-1] - 1).mean(-1)


def group(returns: Returns) -> Tensor:  # [B, T]
    """(r - mean) / (std + 1e-6) over the answers to one prompt, on every token. The standard
    deviation is that of a sample, as in verl; an answer alone with its prompt has advantage 0.

    Source: GRPO, arXiv 2402.03300.
    """
    above, member, count = _above_group(returns)
    squares = (member * above.unsqueeze(-2).square()).sum(-1)
    spread = (squares / (count - 1).clamp_min(1)).sqrt()
    return _on_every_token(above / (spread + 1e-6), returns)


def group_mean(returns: Returns) -> Tensor:  # [B, T]
    """r - mean over the answers to one prompt, on every token.

    Source: Dr. GRPO, arXiv 2503.20783.
    """
    return _on_every_token(_above_group(returns)[0], returns)


def reward_to_go(returns: Returns) -> Tensor:  # [B, T]
    """The discounted sum of token rewards from this token on.

    Source: REINFORCE++, arXiv 2501.03262.
    """
    rewards = returns.token_rewards
    no_values = torch.zeros_like(rewards).unsqueeze(-1)
    gamma = returns.config.target.gamma
    advantages, _ = distributional_gae(rewards, no_values, returns.mask, gamma=gamma, lam=1.0)
    return advantages[..., 0]


def _above_group(returns: Returns) -> tuple[Tensor, Tensor, Tensor]:  # [B], [B, B], [B]
    """Reward less its prompt's mean, which answers share a prompt, and how many do. In float64:
    the mean of equal rewards is then that reward, but for a rounding that is taken off."""
    rewards = torch.where(returns.mask, returns.token_rewards, 0.0).double().sum(-1)
    member = returns.rollout.groups == returns.rollout.groups.unsqueeze(-1)
    count = member.sum(-1)
    above = rewards - (member * rewards).sum(-1) / count
    return torch.where(above.abs() > 1e-12 * rewards.abs(), above, 0.0), member, count


def _on_every_token(advantage: Tensor, returns: Returns) -> Tensor:  # [B] -> [B, T]
    advantage = advantage.to(returns.token_rewards.dtype)
    return torch.where(returns.mask, advantage.unsqueeze(-1), 0.0)
