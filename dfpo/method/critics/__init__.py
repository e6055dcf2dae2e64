"""Critics: a copy of the policy's trunk and a head, behind one protocol.

``estimate`` gives the values the targets are made of; ``loss`` regresses on those targets. A
scalar critic is the case of one quantile. Each kind is a file with a function ``build`` and a row
in ``dfpo.config.choices``.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dfpo.config import Config
from dfpo.config.choices import CRITICS
from dfpo.config.types import CriticTargets, Estimate, Samples


class Critic(Protocol):
    def parts(self) -> list[list[nn.Parameter]]:
        """Parameters in parts that share no gradient: each is clipped by its own norm."""
        ...

    def estimate(self, samples: Samples, generator: torch.Generator) -> Estimate | None: ...

    def loss(
        self,
        samples: Samples,
        targets: CriticTargets,
        generator: torch.Generator,
        most_tokens: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]: ...


def build_critic(policy: PreTrainedModel, config: Config) -> nn.Module:
    """The critic that ``critic.kind`` names; its trunk starts as the policy's, its head is drawn
    from ``config.seed``. Global random states stay as they are."""
    with torch.random.fork_rng(devices=[]):
        return CRITICS[config.critic.kind].load()(policy, config)
