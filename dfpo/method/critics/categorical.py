"""A critic that regresses by classification: the expected return from bins."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dfpo.config import Config
from dfpo.config.types import Counts, CriticTargets, Estimate, Samples
from dfpo.method.critics.trunk import TrunkCritic, after_last, return_units, seeded_trunk
from dfpo.method.losses import masked_mean

# Bins reach so far beyond the range on either side, in half ranges: a smoothed target at its end
# keeps its mean.
MARGIN = 0.25


class CategoricalCritic(TrunkCritic):
    """V = sum_i p_i centre_i with p = softmax(linear(h)), taught by cross-entropy against a normal
    distribution around the target, cut into the same bins.

    Its bins hold no distribution of returns: they smooth one number, so that its error becomes a
    bounded gradient. Targets beyond the bins count as their end.

    Source: HL-Gauss, Farebrother et al. 2024, arXiv 2403.03950, with its ratio of deviation to bin
    width; its transformers and networks of games aside.
    """

    def __init__(self, trunk: PreTrainedModel, mean: float, scale: float, config: Config) -> None:
        super().__init__(trunk)
        settings = config.critic
        self.mean, self.scale = mean, scale
        self.head = nn.Linear(trunk.config.hidden_size, settings.bins)
        # All bins alike: the value starts in the middle of the range.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        edges = torch.linspace(-1 - MARGIN, 1 + MARGIN, settings.bins + 1)
        self.register_buffer("edges", edges, persistent=False)
        self.deviation = settings.smoothing * 2 * (1 + MARGIN) / settings.bins

    @torch.no_grad()
    def estimate(self, samples: Samples, noise: Tensor | None = None) -> Estimate:
        shares = self.head(self.hidden(samples)).softmax(-1)
        centres = (self.edges[1:] + self.edges[:-1]) / 2
        values = (shares @ centres).unsqueeze(-1) * self.scale + self.mean
        return Estimate(quantiles=values[:, :-1], final=after_last(values, samples))

    def loss(
        self, samples: Samples, targets: CriticTargets, counts: Counts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.head(self.hidden(samples))[:, :-1]
        target = (targets.quantiles.mean(-1) - self.mean) / self.scale
        shares = smoothed(target, self.edges, self.deviation)
        loss = -(shares * logits.log_softmax(-1)).sum(-1)
        loss = masked_mean(loss, samples.mask, counts.tokens)
        return loss, {"cross_entropy": loss.detach()}


def smoothed(target: Tensor, edges: Tensor, deviation: float) -> Tensor:  # [...], [K + 1]
    """The share [..., K] of N(target, deviation^2) in each bin, of what lies in all of them."""
    target = target.clamp(edges[0], edges[-1]).unsqueeze(-1)
    below = torch.erf((edges - target) / (math.sqrt(2) * deviation))
    return below.diff(dim=-1) / (below[..., -1:] - below[..., :1])


def build(policy: PreTrainedModel, config: Config) -> CategoricalCritic:
    return CategoricalCritic(seeded_trunk(policy, config), *return_units(config), config)
