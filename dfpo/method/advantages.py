"""Advantages: each a function of ``Returns``, with a row in ``dfpo.config.choices``."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from dfpo.config import Config
from dfpo.config.noise import parse_noise
from dfpo.config.risk import parse_risk
from dfpo.config.rules import value_range
from dfpo.config.types import Estimate, Rollout
from dfpo.method.risk import risk_value
from dfpo.rollout.collect import last_tokens
from dfpo.tasks.source import column_of
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

        r is corrected for flips where ``target.correction`` says so. It is cut
        to the reward's range where ``reward.clip`` says so, and to
        V -+ ``target.winsorise`` ranges around the mean V predicted before the last token.
        """
        settings, reward, rewards = self.config.target, self.config.reward, self.rewards
        if settings.correction == "backward":
            rewards = backward(rewards, *flip_rates(self.rollout, self.config), self.config)
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
    ``target.lam``, where a return can be a reward of this step or an end of the range."""
    told = torch.where(returns.last, returns.token_rewards, 0.0).sum(-1)
    ends = torch.stack([torch.full_like(told[0], end) for end in value_range(returns.config)])
    return rank_advantage(
        returns.estimate.quantiles,
        returns.mixture(returns.config.target.lam),
        torch.cat([told, ends]).sort().values,
    )


def rank_advantage(
    values: Tensor,  # [B, T, Q], of the predicted distribution Z
    returns: Tensor,  # [B, T, P], of the distribution G of the return that followed
    support: Tensor,  # [N] ascending, the returns that there can be; some may repeat
) -> Tensor:  # [B, T]
    """P(Z < G) - P(Z > G), in [-1, 1], for independent Z and G that are projected onto the support.

    It measures how surely the return was better than predicted, not by how much: no reward,
    however large, counts for more than certainty. A value between two neighbours of the support is
    either of them, with chances that keep its mean. Where returns are 0 or 1, this is the
    difference of the means, however smooth the prediction; where they are many, it is the rank.

    Source: this project's use of the distribution; as a measure of effect, the probability of
    superiority, McGraw and Wong 1992, "A common language effect size statistic"; the projection is
    that of Bellemare et al. 2017, arXiv 1707.06887.
    """
    # In float64: differences of sums are divided by gaps, which may be small beside the rewards.
    support = support.double()
    lowest, highest = support[0], support[-1]
    predicted = values.double().clamp(lowest, highest).sort(-1).values
    returns = returns.double().clamp(lowest, highest).contiguous()

    below = support[torch.searchsorted(support, returns, right=True) - 1]
    above = support[torch.searchsorted(support, returns)]
    # The chance of the upper one.
    share = torch.where(above > below, (returns - below) / (above - below), 0.0)
    lower, upper = (_rank_of(points, predicted, support) for points in (below, above))
    rank = (1 - share) * lower + share * upper
    return rank.mean(-1).to(values.dtype)


def _rank_of(points: Tensor, predicted: Tensor, support: Tensor) -> Tensor:  # [B, T, P]
    """P(Z < g) - P(Z > g) of points g of the support, Z's values [B, T, Q] ascending.

    Of a value z between g and the next lower point a, the share (g - z) / (g - a) is below g, and
    alike above.
    """
    count = predicted.shape[-1]
    sums = torch.nn.functional.pad(predicted.cumsum(-1), (1, 0))  # of the lowest values

    def distances(low: Tensor, high: Tensor) -> Tensor:
        """From the values in places low to high up to g, in all."""
        return (high - low) * points - (sums.gather(-1, high) - sums.gather(-1, low))

    # The neighbours of g; at an end of the support g itself, beyond which nothing lies.
    under = support[(torch.searchsorted(support, points) - 1).clamp_min(0)]
    over = torch.searchsorted(support, points, right=True).clamp_max(len(support) - 1)
    over = support[over]

    wholly, partly = (
        torch.searchsorted(predicted, under, right=True), torch.searchsorted(predicted, points)
    )  # fmt: skip
    below = wholly + distances(wholly, partly) / (points - under)
    below = torch.where(points > under, below, 0.0)

    partly, wholly = (
        torch.searchsorted(predicted, points, right=True), torch.searchsorted(predicted, over)
    )  # fmt: skip
    above = count - wholly + distances(partly, wholly) / (points - over)
    above = torch.where(over > points, above, 0.0)

    return (below - above) / count


def group(returns: Returns) -> Tensor:  # [B, T]
    """(r - mean) / (std + 1e-6) over the answers to one prompt, on every token. The standard
    deviation is that of a sample, as in verl; an answer alone with its prompt has advantage 0.

    Source: GRPO, arXiv 2402.03300.
    """
    return _on_every_token(_above_group(returns)[0] / (_group_spread(returns) + 1e-6), returns)


def group_quantile(returns: Returns) -> Tensor:  # [B, T]
    """(r - q) / (std + 1e-6), q the least of the prompt's rewards that a share ``target.quantile``
    of them does not exceed. Where fewer are right, only they count; where more, only the wrong.

    Source: quantile advantage estimation, arXiv 2509.22611.
    """
    rewards, member, count = _answer_rewards(returns)
    above, spread = _above_group(returns)[0], _group_spread(returns)
    at_most = rewards.unsqueeze(-2) <= rewards.unsqueeze(-1)
    share = (member & at_most).sum(-1) / count
    # Room for the rounding of the level: 2 of 5 is a share of .4.
    reached = member & (share >= returns.config.target.quantile - 1e-9)
    baseline = torch.where(reached, rewards, torch.inf).amin(-1)
    advantage = torch.where(spread > 0, rewards - baseline, 0.0 * above)
    return _on_every_token(advantage / (spread + 1e-6), returns)


def leave_one_out(returns: Returns) -> Tensor:  # [B, T]
    """r less the mean of the other answers to its prompt, on every token; 0 for an answer alone.
    With n answers it is n / (n - 1) times r less the mean of all.

    Source: RLOO, arXiv 2402.14740.
    """
    above, _, count = _above_group(returns)
    return _on_every_token(above * count / (count - 1).clamp_min(1), returns)


def forward(returns: Returns) -> Tensor:  # [B, T]
    """Weights of the score function at a known rate of false negatives: it where the told reward
    is 1, it less 1 where that is 0, so that in expectation wrong answers alone are pushed down.

    Source: forward correction, arXiv 2510.00915.
    """
    low, high = returns.config.reward.low, returns.config.reward.high
    _, negatives = flip_rates(returns.rollout, returns.config)
    share = (_answer_rewards(returns)[0] - low) / (high - low)
    return _on_every_token(share - (1 - negatives), returns)


def backward(rewards: Tensor, positives: Tensor, negatives: Tensor, config: Config) -> Tensor:
    """Told rewards [B] less what flips at known rates [B] add on average, so that their expectation
    is the clean reward's.

    Source: backward correction, arXiv 2510.00915; Natarajan et al. 2013.
    """
    low, width = config.reward.low, config.reward.high - config.reward.low
    share = (rewards - low) / width
    return low + width * ((share - positives) / (1 - positives - negatives)).to(rewards.dtype)


def flip_rates(rollout: Rollout, config: Config) -> tuple[Tensor, Tensor]:  # [B], [B]
    """Rates of false positives and negatives of each answer's label, which only ``noise`` knows."""
    noise = parse_noise(config.noise)
    parts = [
        noise.of(column_of(row, noise.by)) if noise.mixture else noise
        for row in rollout.answers.rows
    ]
    rates = torch.tensor([part.flip_rates for part in parts], dtype=torch.float64)
    positives, negatives = rates.view(-1, 2).to(rollout.rewards.device).unbind(-1)
    return positives, negatives


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


def _answer_rewards(returns: Returns) -> tuple[Tensor, Tensor, Tensor]:  # [B], [B, B], [B]
    """Reward in float64, which answers share a prompt, and how many do."""
    rewards = torch.where(returns.mask, returns.token_rewards, 0.0).double().sum(-1)
    member = returns.rollout.groups == returns.rollout.groups.unsqueeze(-1)
    return rewards, member, member.sum(-1)


def _group_spread(returns: Returns) -> Tensor:  # [B]
    """The standard deviation, of a sample, of the rewards of each answer's prompt."""
    above, member, count = _above_group(returns)
    squares = (member * above.unsqueeze(-2).square()).sum(-1)
    return (squares / (count - 1).clamp_min(1)).sqrt()


def _above_group(returns: Returns) -> tuple[Tensor, Tensor, Tensor]:  # [B], [B, B], [B]
    """Reward less its prompt's mean, which answers share a prompt, and how many do. In float64:
    the mean of equal rewards is then that reward, but for a rounding that is taken off."""
    rewards, member, count = _answer_rewards(returns)
    above = rewards - (member * rewards).sum(-1) / count
    return torch.where(above.abs() > 1e-12 * rewards.abs(), above, 0.0), member, count


def _on_every_token(advantage: Tensor, returns: Returns) -> Tensor:  # [B] -> [B, T]
    advantage = advantage.to(returns.token_rewards.dtype)
    return torch.where(returns.mask, advantage.unsqueeze(-1), 0.0)
