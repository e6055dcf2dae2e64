"""Critics: a copy of the policy's trunk and a head, behind one protocol.

``estimate`` gives the values the targets are made of; ``loss`` regresses on those targets. A
scalar critic is the case of one quantile.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from dfpo.config import Config
from dfpo.method.losses import masked_mean
from dfpo.method.targets import Estimate, Targets
from dfpo.rollout.policy import Samples, positions
from dfpo_kernels import FlowField, quantile_huber_loss
from dfpo_kernels import value_flow_losses as losses
from dfpo_kernels.nn import ValueFlowHead, build_conditioner


class Critic(Protocol):
    def parts(self) -> list[list[nn.Parameter]]:
        """Parameters in parts that share no gradient: each is clipped by its own norm."""
        ...

    def estimate(self, samples: Samples, generator: torch.Generator) -> Estimate | None: ...

    def loss(
        self,
        samples: Samples,
        targets: Targets,
        generator: torch.Generator,
        most_tokens: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]: ...


class NoCritic(nn.Module):
    """Predicts nothing: for advantages that need no value."""

    def estimate(self, samples: Samples, generator: torch.Generator) -> None:
        return None


class LogPartition(NoCritic):
    """log Z of a prompt, read off the policy's own last states over its tokens: the soft value of
    the prompt. It learns by the policy's loss, which reaches the policy through it.

    Source: arXiv 2509.15207, whose dropout is left out, as the policy has none.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        block = (nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size))
        again = (nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size))
        self.head = nn.Sequential(*block, *again, nn.Linear(size, 1))

    def log_partition(self, hidden: Tensor, samples: Samples) -> Tensor:  # [B, P + T, D] -> [B]
        length = hidden.shape[1] - samples.mask.shape[1]
        kept = samples.attention_mask[:, :length].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden[:, :length] * kept).sum(1) / kept.sum(1).clamp_min(1)
        return self.head(mean).squeeze(-1)

    @contextmanager
    def watch(self, policy: PreTrainedModel) -> Iterator[list[Tensor]]:
        """The last states of the policy's next forward pass, [B, P + T, D], in a list."""
        found: list[Tensor] = []
        handle = policy.base_model.register_forward_hook(
            lambda module, args, output: found.append(output.last_hidden_state)
        )
        try:
            yield found
        finally:
            handle.remove()


class _TrunkCritic(nn.Module):
    """What every critic shares: hidden states [B, T + 1, D] around the answer tokens."""

    def __init__(self, trunk: PreTrainedModel) -> None:
        super().__init__()
        self.trunk = trunk

    def parts(self) -> list[list[nn.Parameter]]:
        return [list(self.parameters())]

    def hidden(self, samples: Samples) -> Tensor:
        length = samples.mask.shape[1]
        states = self.trunk(
            input_ids=samples.input_ids,
            attention_mask=samples.attention_mask,
            position_ids=positions(samples.attention_mask),
        ).last_hidden_state
        return states[:, -length - 1 :]


class ScalarCritic(_TrunkCritic):
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
    def estimate(self, samples: Samples, generator: torch.Generator) -> Estimate:
        values = self.values(samples).amin(-1, keepdim=True) * self.scale + self.mean
        return Estimate(values[:, :-1], values[:, -1], None, None)

    def loss(
        self,
        samples: Samples,
        targets: Targets,
        generator: torch.Generator,
        most_tokens: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        error = self.values(samples)[:, :-1] - (targets.quantiles - self.mean) / self.scale
        loss = masked_mean(0.5 * error.square().mean(-1), samples.mask)
        return loss, {"mean": loss.detach()}


class QuantileCritic(_TrunkCritic):
    """DVPO's critic: an ensemble of quantile heads, each two ReLU layers, and its terms.

        quantile      quantile Huber loss of each head on all pairs               (Eq. 3)
        risk          squared differences of both tail means, of the ensemble     (Eq. 5, 6)
        mean_shift    relu(mean y - mean q)                                       (Eq. 7)
        tail_shape    variance and curvature of the tails                         (Eq. 8, 9)
        consistency   squared differences between heads                           (Eq. 10)

    Its value is the mean over heads. Targets keep their index: quantile-wise GAE.

    Source: arXiv 2512.03847, reconstructed from public summaries: forms are those of third parties
    and the weighting of its Eq. 4 is left out. Levels are midpoints, and kappa is small, where j/M
    and 1 are told: with few quantiles of a reward in [0, 1] these bias the mean upwards.
    """

    def __init__(self, trunk: PreTrainedModel, mean: float, scale: float, config: Config) -> None:
        super().__init__(trunk)
        settings = config.critic
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(trunk.config.hidden_size, settings.width), nn.ReLU(),
                nn.Linear(settings.width, settings.width), nn.ReLU(),
                nn.Linear(settings.width, settings.num_quantiles),
            )
            for _ in range(settings.heads)
        )  # fmt: skip
        self.mean, self.scale = mean, scale
        self.coefs, self.settings = config.coef, settings

    def quantiles(self, samples: Samples) -> Tensor:  # [heads, B, T + 1, Q], in flow units
        hidden = self.hidden(samples)
        return torch.stack([head(hidden) for head in self.heads])

    @torch.no_grad()
    def estimate(self, samples: Samples, generator: torch.Generator) -> Estimate:
        values = self.quantiles(samples).mean(0) * self.scale + self.mean
        return Estimate(values[:, :-1], values[:, -1], None, None)

    def loss(
        self,
        samples: Samples,
        targets: Targets,
        generator: torch.Generator,
        most_tokens: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        heads = self.quantiles(samples)[:, :, :-1]
        shape = (-1, heads.shape[-1])
        y = ((targets.quantiles - self.mean) / self.scale).reshape(shape)
        ensemble, kappa = heads.mean(0).reshape(shape), self.settings.kappa / self.scale
        terms = {
            "quantile": torch.stack(
                [quantile_huber_loss(head.reshape(shape), y, kappa=kappa) for head in heads]
            ).mean(0),
            # Mean over pairs of heads i != i' of (q_i - q_i')^2: twice the sample variance.
            "consistency": 2 * heads.var(0).mean(-1).reshape(-1)
            if len(heads) > 1
            else torch.zeros_like(y[:, 0]),
            "mean_shift": losses.mean_shift_loss(ensemble, y),
        }
        q, y = ensemble.sort(-1).values, y.sort(-1).values
        tail = self.settings.tail
        terms["risk"] = losses.tail_mean_loss(q, y, tail)
        terms["tail_shape"] = losses.tail_shape_loss(q, y, tail, self.settings.curvature)
        means = {
            name: masked_mean(term.view_as(samples.mask), samples.mask)
            for name, term in terms.items()
        }
        loss = sum(getattr(self.coefs, name) * term for name, term in means.items())
        return loss, {name: term.detach() for name, term in means.items()}


class ValueFlowCritic(_TrunkCritic):
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
        return Estimate(values[:, :-1], values[:, -1], shared, field)

    def loss(
        self,
        samples: Samples,
        targets: Targets,
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


def build_critic(policy: PreTrainedModel, config: Config) -> nn.Module:
    """The critic that ``critic.kind`` names; its trunk starts as the policy's, its head is drawn
    from ``config.seed``."""
    settings = config.critic
    mean = (settings.return_low + settings.return_high) / 2
    scale = (settings.return_high - settings.return_low) / 2
    with torch.random.fork_rng(devices=[]):
        trunk = None if settings.kind in ("none", "partition") else copy_trunk(policy)
        torch.manual_seed(config.seed)
        if settings.kind == "none":
            return NoCritic()
        if settings.kind == "partition":
            return LogPartition(policy.config.get_text_config().hidden_size)
        if settings.kind == "scalar":
            return ScalarCritic(trunk, scalar_head(trunk, config), mean, scale)
        if settings.kind == "quantile":
            return QuantileCritic(trunk, mean, scale, config)
        return ValueFlowCritic(trunk, flow_head(trunk, mean, scale, config), config)


def copy_trunk(policy: PreTrainedModel) -> PreTrainedModel:
    """The policy without its language head, with weights of its own."""
    trunk = AutoModel.from_config(policy.config)
    trunk.load_state_dict(policy.base_model.state_dict())
    return trunk


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


def flow_head(trunk: PreTrainedModel, mean: float, scale: float, config: Config) -> ValueFlowHead:
    """The value-flow head with the settings of ``critic`` that it knows."""
    settings = config.critic
    names = inspect.signature(ValueFlowHead).parameters
    return ValueFlowHead(
        trunk.config.hidden_size,
        return_mean=mean,
        return_scale=scale,
        return_range=(
            (settings.return_low, settings.return_high) if settings.clip_returns else None
        ),
        **{name: value for name, value in dataclasses.asdict(settings).items() if name in names},
    )
