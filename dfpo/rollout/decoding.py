"""How answers are decoded in evaluation, beyond temperature: top-p, top-k and stop strings.

Training knows none of them: its answers come from the distribution whose log-probabilities are
trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class Decoding:
    """As transformers and vLLM mean them: top-k is taken first, of logits over temperature."""

    top_p: float = 1.0  # least likely tokens whose probabilities sum to at most 1 - top_p: left out
    top_k: int = 0  # only so many likeliest tokens; 0 for all
    stop: tuple[str, ...] = ()  # an answer ends before the first of these strings

    def narrow(self, input_ids: Tensor | None, scores: Tensor) -> Tensor:  # [B, V] -> [B, V]
        """Logits over temperature, -inf where a token is left out."""
        warpers = LogitsProcessorList()
        if self.top_k:
            warpers.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1.0:
            warpers.append(TopPLogitsWarper(self.top_p))
        return warpers(input_ids, scores)

    def cut(
        self, tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int]
    ) -> tuple[str, list[int]]:
        """An answer up to its first stop string, without it, and the tokens that completed it."""
        places = [place for word in self.stop if (place := text.find(word)) >= 0]
        if not places:
            return text, ids

        # From the end, since an engine stops there or soon after.
        def stops_within(count: int) -> bool:
            return self.stops(tokenizer.decode(ids[:count], skip_special_tokens=True))

        count = len(ids)
        while count > 1 and stops_within(count - 1):
            count -= 1
        return text[: min(places)], ids[:count]

    def stops(self, text: str) -> bool:
        return any(word in text for word in self.stop)


PLAIN = Decoding()


class StopStrings(StoppingCriteria):
    """Which answers of a batch hold a stop string, so that no more is drawn of them."""

    def __init__(self, decoding: Decoding, tokenizer: PreTrainedTokenizerBase, width: int) -> None:
        self.decoding, self.tokenizer, self.width = decoding, tokenizer, width
        # A token is a byte at least; one more, since the first of a text may lose its space.
        self.span = 1 + max(len(word.encode()) for word in decoding.stop)
        self.stopped: Tensor | None = None  # [B]

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        start = max(self.width, input_ids.shape[1] - self.span)
        texts = self.tokenizer.batch_decode(input_ids[:, start:], skip_special_tokens=True)
        stopped = [self.decoding.stops(text) for text in texts]
        now = torch.tensor(stopped, device=input_ids.device)
        self.stopped = now if self.stopped is None else self.stopped | now
        return self.stopped
