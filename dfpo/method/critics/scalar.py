"""PPO's critic: the expected return."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dfpo.config import Config
from dfpo.config.types import Counts, CriticTargets, Estimate, Samples
from dfpo.method.critics.trunk import TrunkCritic, after_last, return_units, seeded_trunk
from dfpo.method.losses import masked_mean
from dfpo_kernels.value_flow import build_conditioner


class ScalarCritic(TrunkCritic):
    """V = return_mean + return_scale * min_k head_k(h): PPO's critic, in the flow's units, with
    one head or several, each regressed on the same targets.

    Source of the least of several: Robust-Bellman PPO, with which arXiv 2512.03847 compares; of it
    no more is known.
    """

    def __init__(self, trunk: PreTrainedModel, head: nn.Module, mean: float, scale: float) -> None:
        super().__init__(trunk)
        self.head = head
        self.mean, self.scale = mean, scale

    def values(self, samples: Samples) -> Tensor:  # [B, T + 1, heads], in flow units
        return self.head(self.hidden(samples))

    @torch.no_grad()
    def estimate(self, samples: Samples, noise: Tensor | None = None) -> Estimate:
        values = self.values(samples).amin(-1, keepdim=True) * self.scale + self.mean
        return Estimate(quantiles=values[:, :-1], final=after_last(values, samples))

    def loss(
        self, samples: Samples, targets: CriticTargets, counts: Counts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        error = self.values(samples)[:, :-1] - (targets.quantiles - self.mean) / self.scale
        loss = masked_mean(0.5 * error.square().mean(-1), samples.mask, counts.tokens)
        return loss, {"mean": loss.detach()}


def scalar_head(trunk: PreTrainedModel, config: Config) -> nn.Module:
    """Linear heads; a single one starts at zero, where several would never differ."""
    size, width, heads = trunk.config.hidden_size, config.critic.width, config.critic.heads
    linear = nn.Linear(width if config.critic.conditioner else size, heads)
    nn.init.zeros_(linear.bias)
    # Several start near enough to each other that their least is not far below the middle.
    nn.init.normal_(linear.weight, std=0.0 if heads == 1 else 0.1 / linear.in_features**0.5)
    if config.critic.conditioner:
        return nn.Sequential(build_conditioner(size, width), linear)
    return linear


def build(policy: PreTrainedModel, config: Config) -> ScalarCritic:
    trunk = seeded_trunk(policy, config)
    return ScalarCritic(trunk, scalar_head(trunk, config), *return_units(config))
