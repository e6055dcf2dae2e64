"""Counter-based randomness: a draw depends on what it is for, never on what was drawn before.

So arms compared on one seed share their prompts, sampling and noise, and one process equals many.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from dfpo_kernels.philox import philox4x32, seed_key, uniform24


class Stream(IntEnum):
    """What a draw is for, a word of its counter; 0 belongs to ``lambda_mixture_targets``."""

    SAMPLING = 1
    NOISE = 2
    EVALUATION = 3
    PATH = 4
    PROMPT_NOISE = 5
    VOTE = 6
    ORDER = 7
    KIND_NOISE = 8
    NOISE_SIZE = 9


# The further calls of one rollout function have streams of their own, that far apart.
NEXT_CALL = 256


def uniforms(
    seed: int,
    stream: Stream | int,
    step: int,
    sample_ids: Tensor,  # [B] int64
    count: int,
) -> Tensor:  # [B, count]
    """float32 uniforms in [0, 1), a pure function of (seed, stream, step, sample id, position)."""
    device = sample_ids.device
    blocks = torch.arange((count + 3) // 4, dtype=torch.int64, device=device)
    counter = torch.stack(
        torch.broadcast_tensors(
            blocks,
            sample_ids.unsqueeze(-1),
            # Filled on the device: a copied number would make the host wait for it.
            torch.full((), step, dtype=torch.int64, device=device),
            torch.full((), int(stream), dtype=torch.int64, device=device),
        ),
        dim=-1,
    )

    return uniform24(philox4x32(counter, seed_key(seed))).flatten(-2)[:, :count]


@dataclass(frozen=True)
class Draws:
    """What answers to some prompts are drawn with."""

    seed: int
    stream: Stream
    step: int
    sample_ids: Tensor  # [B] int64

    def uniforms(self, count: int) -> Tensor:  # [B, count]
        return uniforms(self.seed, self.stream, self.step, self.sample_ids, count)

    def of_call(self, call: int, rows: int, count: int) -> Tensor:  # [rows, count]
        """Those of the call, from 0, of a rollout function that asks for ``rows`` turns."""
        ids = self.sample_ids[:1] + torch.arange(rows, device=self.sample_ids.device)
        stream = self.stream + NEXT_CALL * call
        return uniforms(self.seed, stream, self.step, ids, count)
