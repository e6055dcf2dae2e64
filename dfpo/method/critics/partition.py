"""The partition function of a prompt, which trajectory balance learns beside the policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dfpo.config import Config
from dfpo.config.types import Samples
from dfpo.method.critics.none import NoCritic
from dfpo.method.critics.trunk import at_least_float32


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
        states: list[Tensor] = []
        handle = policy.base_model.register_forward_hook(
            lambda module, args, output: states.append(at_least_float32(output.last_hidden_state))
        )
        try:
            yield states
        finally:
            handle.remove()


def build(policy: PreTrainedModel, config: Config) -> LogPartition:
    torch.manual_seed(config.seed)
    return LogPartition(policy.config.get_text_config().hidden_size)
