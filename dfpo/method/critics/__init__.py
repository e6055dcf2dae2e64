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
from dfpo.config.types import Counts, CriticTargets, Estimate, Samples, row_index
from dfpo.rollout.batches import Parts, by_parts
from dfpo.rollout.sharding import whole
from dfpo_kernels import FlowField


class Critic(Protocol):
    def parts(self) -> list[list[nn.Parameter]]:
        """Parameters in parts that share no gradient: each is clipped by its own norm."""
        ...

    def noise(self, answers: int, generator: torch.Generator) -> Tensor | None:
        """[B, 1, Q], the base noise of each answer, where its values are a function of one."""
        ...

    def estimate(self, samples: Samples, noise: Tensor | None = None) -> Estimate | None: ...

    def prepare(
        self, targets: CriticTargets, mask: Tensor, generator: torch.Generator
    ) -> CriticTargets:
        """``targets`` of a minibatch with what is drawn for it, or is a mean over all of it."""
        ...

    def loss(
        self, samples: Samples, targets: CriticTargets, counts: Counts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of some answers of a minibatch that ``counts`` counts, and its terms."""
        ...


def build_critic(policy: PreTrainedModel, config: Config) -> nn.Module:
    """The critic that ``critic.kind`` names; its trunk starts as the policy's, its head is drawn
    from ``config.seed``. Global random states stay as they are, and nothing of it is dropped at
    random: one answer has one value."""
    with torch.random.fork_rng(devices=[]):
        return CRITICS[config.critic.kind].load()(policy, config).eval()


@torch.no_grad()
def estimate_values(
    critic: Critic, samples: Samples, generator: torch.Generator, micro_tokens: int = 0
) -> Estimate | None:
    """What the critic predicts of all answers, ``micro_tokens`` at a time, 0 for all at once; None
    of one that predicts nothing."""
    noise = critic.noise(len(samples.lengths), generator)

    def compute(part: Samples, rows: list[int]) -> Parts:
        mine = None if noise is None else noise[row_index(rows, noise.device)]
        estimate = critic.estimate(part, mine)
        if estimate is None:
            return Parts({}, {})
        tokens = {"quantiles": estimate.quantiles}
        if estimate.field is not None:
            tokens |= {f"field.{i}": x for i, x in enumerate(estimate.field[:3])}
        return Parts(tokens, {"final": estimate.final})

    with whole(critic):
        tokens, answers = by_parts(compute, samples, micro_tokens)

    if not tokens:
        return None
    field = None
    if "field.0" in tokens:
        # Those of one process, which all have.
        field = FlowField(*(tokens[f"field.{i}"] for i in range(3)), *critic.field_weights())

    return Estimate(
        quantiles=tokens["quantiles"],
        final=answers["final"],
        base=None if noise is None else noise.expand(-1, samples.mask.shape[1], -1),
        field=field,
    )
