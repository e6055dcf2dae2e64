"""Critics: a copy of the policy's trunk and a head, behind one protocol.

``estimate`` gives the values the targets are made of; ``loss`` regresses on those targets. A
scalar critic is the case of one quantile.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from dfpo.config import Config
from dfpo.policy import Samples, positions
from dfpo.targets import Estimate, Targets
from dfpo_kernels import FlowField
from dfpo_kernels.nn import ValueFlowHead


class Critic(Protocol):
    def estimate(self, samples: Samples, generator: torch.Generator) -> Estimate: ...

    def loss(
        self, samples: Samples, targets: Targets, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]: ...


class _TrunkCritic(nn.Module):
    """What every critic shares: hidden states [B, T + 1, D] around the answer tokens."""

    def __init__(self, trunk: PreTrainedModel) -> None:
        super().__init__()
        self.trunk = trunk

    def hidden(self, samples: Samples) -> Tensor:
        length = samples.mask.shape[1]
        states = self.trunk(
            input_ids=samples.input_ids,
            attention_mask=samples.attention_mask,
            position_ids=positions(samples.attention_mask),
        ).last_hidden_state
        return states[:, -length - 1 :]


class ScalarCritic(_TrunkCritic):
    """V = return_mean + return_scale * Linear(h): PPO's critic, in the flow's units."""

    def __init__(self, trunk: PreTrainedModel, mean: float, scale: float) -> None:
        super().__init__(trunk)
        self.head = nn.Linear(trunk.config.hidden_size, 1)
        self.mean, self.scale = mean, scale
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @torch.no_grad()
    def estimate(self, samples: Samples, generator: torch.Generator) -> Estimate:
        values = self.head(self.hidden(samples)) * self.scale + self.mean
        return Estimate(values[:, :-1], values[:, -1], None, None)

    def loss(
        self, samples: Samples, targets: Targets, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        values = self.head(self.hidden(samples)[:, :-1])
        error = (values - (targets.quantiles - self.mean) / self.scale)[samples.mask]
        loss = 0.5 * error.square().mean()
        return loss, {"mean": loss.detach()}


class ValueFlowCritic(_TrunkCritic):
    """The value flow on the trunk's hidden states."""

    def __init__(self, trunk: PreTrainedModel, head: ValueFlowHead, config: Config) -> None:
        super().__init__(trunk)
        self.head = head
        self.coefs = config.coef

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
        return Estimate(values[:, :-1], values[:, -1], shared, field)

    def loss(
        self, samples: Samples, targets: Targets, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.head.loss(
            self.hidden(samples)[:, :-1],
            targets.quantiles,
            samples.mask,
            coefs=self.coefs,
            base=targets.base,
            spread=targets.spread,
            path=targets.path,
            generator=generator,
        )


def build_critic(policy: PreTrainedModel, config: Config) -> _TrunkCritic:
    """A critic whose trunk starts as the policy's; the head is drawn from ``config.seed``."""
    trunk = AutoModel.from_config(policy.config)
    trunk.load_state_dict(policy.base_model.state_dict())
    settings = config.critic
    mean = (settings.return_low + settings.return_high) / 2
    scale = (settings.return_high - settings.return_low) / 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if settings.kind == "scalar":
            return ScalarCritic(trunk, mean, scale)
        names = inspect.signature(ValueFlowHead).parameters
        head = ValueFlowHead(
            trunk.config.hidden_size,
            return_mean=mean,
            return_scale=scale,
            return_range=(
                (settings.return_low, settings.return_high) if settings.clip_returns else None
            ),
            **{
                name: value for name, value in dataclasses.asdict(settings).items() if name in names
            },
        )
        return ValueFlowCritic(trunk, head, config)
