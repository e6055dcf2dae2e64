"""What critics of token states share: a copy of the policy without its language head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from dfpo.config import Config
from dfpo.config.rules import value_range
from dfpo.config.types import CriticTargets, Samples
from dfpo.rollout.adapters import CRITIC, View
from dfpo.rollout.policy import positions


class TrunkCritic(nn.Module):
    """What every critic shares: hidden states [B, T + 1, D] around the answer tokens."""

    def __init__(self, trunk: PreTrainedModel) -> None:
        super().__init__()
        self.trunk = trunk
        if isinstance(trunk, View):
            # The base is the policy's, frozen; what of it is the critic's own is its adapter.
            own = {name.replace(".", "/"): p for name, p in trunk.state_dict().items()}
            self.adapter = nn.ParameterDict(own)

    def parts(self) -> list[list[nn.Parameter]]:
        return [list(self.parameters())]

    def noise(self, answers: int, generator: torch.Generator) -> Tensor | None:
        return None

    def prepare(
        self, targets: CriticTargets, mask: Tensor, generator: torch.Generator
    ) -> CriticTargets:
        return targets

    def hidden(self, samples: Samples) -> Tensor:
        length = samples.mask.shape[1]
        states = self.trunk(
            input_ids=samples.input_ids,
            attention_mask=samples.attention_mask,
            position_ids=positions(samples.attention_mask),
            use_cache=False,
        ).last_hidden_state
        return at_least_float32(states[:, -length - 1 :])


def at_least_float32(states: Tensor) -> Tensor:
    """What heads read: a frozen base may be kept in bfloat16."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def after_last(values: Tensor, samples: Samples) -> Tensor:  # [B, T + 1, Q] -> [B, Q]
    """Those of the state after each answer's last token."""
    last = samples.present.sum(-1).long().view(-1, 1, 1)
    return values.gather(1, last.expand(-1, 1, values.shape[-1])).squeeze(1)


def seeded_trunk(policy: PreTrainedModel | View, config: Config) -> PreTrainedModel | View:
    """The policy without its language head, with weights of its own, or with an adapter of its own
    where the policy is one. What is drawn next, a head, is drawn from ``config.seed``."""
    if isinstance(policy, View):
        torch.manual_seed(config.seed)
        return View(policy.root, CRITIC, policy.root.base_model)
    trunk = AutoModel.from_config(policy.config)
    trunk.load_state_dict(policy.base_model.state_dict())
    torch.manual_seed(config.seed)
    return trunk


def return_units(config: Config) -> tuple[float, float]:
    """Middle and half-width of ``value_range``: heads predict (return - middle) / half-width."""
    low, high = value_range(config)
    return (low + high) / 2, (high - low) / 2
