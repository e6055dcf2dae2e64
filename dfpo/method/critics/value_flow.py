"""The value flow on the trunk's hidden states: DFPO's critic."""

from __future__ import annotations

import dataclasses
import inspect

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dfpo.config import Config
from dfpo.config.rules import value_range
from dfpo.config.types import Counts, CriticTargets, Estimate, Samples
from dfpo.method.critics.trunk import TrunkCritic, after_last, return_units, seeded_trunk
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

    def noise(self, answers: int, generator: torch.Generator) -> Tensor | None:
        """One draw per answer under shared noise: a particle keeps its own from token to token."""
        if self.head.coupling != "shared_noise":
            return None
        shape = (answers, 1, self.head.num_quantiles)
        return torch.randn(shape, generator=generator, device=generator.device)

    @torch.no_grad()
    def estimate(self, samples: Samples, noise: Tensor | None = None) -> Estimate:
        velocity, one_step = self.head.fields(self.hidden(samples))
        states = samples.mask.shape[1] + 1
        base = self.head.base if noise is None else noise.expand(-1, states, -1)
        values = self.head.quantiles(velocity, one_step, base)

        field = None
        if self.coefs.path:
            field = FlowField(*(x[:, :-1] for x in velocity[:3]), *self.field_weights())
        shared = None if noise is None else base[:, :-1]
        return Estimate(
            quantiles=values[:, :-1], final=after_last(values, samples), base=shared, field=field
        )

    def field_weights(self) -> list[Tensor]:
        """What the velocity fields of all tokens share, frozen as it is now."""
        return [x.detach().clone() for x in (self.head.z_weight, self.head.time_weight)]

    def prepare(
        self, targets: CriticTargets, mask: Tensor, generator: torch.Generator
    ) -> CriticTargets:
        shape = (*mask.shape, self.head.num_quantiles + 1)
        return dataclasses.replace(
            targets,
            draws=torch.rand(shape, generator=generator, device=mask.device),
            weight=self.head.token_weights(targets.spread, mask),
        )

    def loss(
        self, samples: Samples, targets: CriticTargets, counts: Counts
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
            draws=targets.draws,
            weight=targets.weight,
            most_tokens=sum(samples.counts),
            total_tokens=counts.tokens,
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
        return_range=value_range(config) if settings.clip_returns else None,
        **{name: value for name, value in dataclasses.asdict(settings).items() if name in names},
    )


def build(policy: PreTrainedModel, config: Config) -> ValueFlowCritic:
    trunk = seeded_trunk(policy, config)
    return ValueFlowCritic(trunk, flow_head(trunk, config), config)
