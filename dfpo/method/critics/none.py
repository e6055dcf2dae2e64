"""No critic: advantages come from rewards alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dfpo.config import Config
from dfpo.config.types import Samples


class NoCritic(nn.Module):
    """Predicts nothing: for advantages that need no value."""

    def noise(self, answers: int, generator: torch.Generator) -> None:
        return None

    def estimate(self, samples: Samples, noise: Tensor | None = None) -> None:
        return None


def build(policy: PreTrainedModel, config: Config) -> NoCritic:
    return NoCritic()
