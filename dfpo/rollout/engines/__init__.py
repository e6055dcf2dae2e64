"""Generation engines: what turns prompts into answers, behind one small protocol.

Each is a file with a function ``build`` and a row in ``dfpo.config.choices``. An engine knows
nothing of micro-batches and processes: it gets the prompts that one process samples at once.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dfpo.config.choices import ENGINES
from dfpo.rollout.decoding import Decoding


class EngineError(RuntimeError):
    """Why an engine gave no answers, in one line."""


class Generated(NamedTuple):
    """Answers; what stands behind an answer's end token is of no matter."""

    tokens: Tensor  # [B, T] int64, T at most the limit
    logprobs: Tensor | None  # [B, T], of the engine that drew them; None where they are the model's


class Engine(Protocol):
    tells_logprobs: bool  # whether what it generates comes with log-probabilities of its own

    def generate(
        self,
        prompts: list[list[int]],
        limit: int,
        *,
        uniforms: Tensor | None,  # [B, limit]
        temperature: float,
        decoding: Decoding,
    ) -> Generated:
        """Answers of at most ``limit`` tokens: greedy without ``uniforms``, else token n of answer
        b is drawn with uniform (b, n), or by draws of the engine's own that they seed. Training
        asks for plain ``decoding``. An answer may go on after a stop string: it is cut there."""
        ...

    def update(self) -> None:
        """The policy's weights have changed: draw from the new ones from here on."""
        ...

    def rest(self) -> None:
        """All answers for now are drawn: what memory they took is free for training."""
        ...


def build_engine(
    name: str, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, memory: float
) -> Engine:
    """The engine that ``rollout.engine`` names; ``memory`` is its share of the device's, where it
    has one of its own. Raises ConfigError."""
    return ENGINES[name].load()(policy, tokenizer, memory)
