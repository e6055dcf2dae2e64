"""The value flow on the trunk's hidden states: DFPO's critic."""

from __future__ import annotations

import dataclasses
import inspect

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dfpo.config import Config
from dfpo.config.types import CriticTargets, Estimate, Samples
from dfpo.method.critics.trunk import TrunkCritic, return_units, seeded_trunk
from dfpo_kernels import FlowField
from dfpo_kernels.nn import ValueFlowHead


class ValueFlowCritic(TrunkCritic):
    """The value flow on the trunk's hidden states."""

    def __init__(self, trunk: PreTrainedModel, head: ValueFlowHead, config: Config) -> None:
        super().__init__(trunk)
        self.head = head
        self.coefs = config.coef

    def parts(self) -> list[list[nn.Parameter]]:
        return self.head.apart(self.parameters())

    @torch.no_grad()
    def estimate(self, samples: Samples, generator: torch.Generator) -> Estimate:
        velocity, one_step = self.head.fields(self.hidden(samples))
        base = self.head.base
        if self.head.coupling == "shared_noise":
            # One draw per answer, so that a particle keeps its noise from token to token.
            shape = (samples.mask.shape[0], 1, self.head.num_quantiles)
            noise = torch.randn(shape, generator=generator, device=base.device)
            base = noise.expand(-1, samples.mask.shape[1] + 1, -1)
        values = self.head.quantiles(velocity, one_step, base)
        shared = base[:, :-1] if self.head.coupling == "shared_noise" else None
        field = None
        if self.coefs.path:
            frozen = [x.clone() for x in (velocity.z_weight, velocity.time_weight)]
            field = FlowField(*(x[:, :-1] for x in velocity[:3]), *frozen)
        return Estimate(quantiles=values[:, :-1], final=values[:, -1], base=shared, field=field)

    def loss(
        self,
        samples: Samples,
        targets: CriticTargets,
        generator: torch.Generator,
        most_tokens: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.head.loss(
            self.hidden(samples)[:, :-1],
            targets.quantiles,
            samples.mask,
            coefs=self.coefs,
            base=targets.base,
            spread=targets.spread,
            target_mean=targets.mean,
            path=targets.path,
            generator=generator,
            most_tokens=most_tokens,
        )


def flow_head(trunk: PreTrainedModel, config: Config) -> ValueFlowHead:
    """The value-flow head with the settings of ``critic`` that it knows."""
    settings = config.critic
    mean, scale = return_units(config)
    names = inspect.signature(ValueFlowHead).parameters
    return ValueFlowHead(
        trunk.config.hidden_size,
        return_mean=mean,
        return_scale=scale,
        return_range=((config.reward.low, config.reward.high) if settings.clip_returns else None),
        **{name: value for name, value in dataclasses.asdict(settings).items() if name in names},
    )


def build(policy: PreTrainedModel, config: Config) -> ValueFlowCritic:
    trunk = seeded_trunk(policy, config)
    return ValueFlowCritic(trunk, flow_head(trunk, config), config)
