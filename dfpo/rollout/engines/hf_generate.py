"""transformers' ``generate``, whose finished rows leave the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Cache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from dfpo.rollout.adapters import root_of
from dfpo.rollout.decoding import PLAIN, Decoding, StopStrings
from dfpo.rollout.engines import Generated
from dfpo.rollout.engines.roomy_cache import roomy_cache
from dfpo.rollout.policy import SMALL_MODEL, dense_head_input
from dfpo.rollout.tokens import end_tokens

# What transformers calls a cache that goes in and out: it changed between releases.
_OUTPUTS = [item.name for item in dataclasses.fields(GenerateDecoderOnlyOutput)]
CACHE = "cache" if "cache" in _OUTPUTS else "past_key_values"
# Rows leave together when so many of the batch have ended: each time costs a few milliseconds.
LEAVING = 0.25


class _CounterSampler(LogitsProcessor):
    """Turns greedy decoding into sampling: token n of answer b is the inverse of the cumulative
    distribution at uniform (b, n). One uniform per token, so paired arms stay paired."""

    def __init__(
        self, uniforms: Tensor, temperature: float, prompt_length: int, decoding: Decoding = PLAIN
    ) -> None:
        self.uniforms = uniforms  # [B, T]
        self.temperature = temperature
        self.prompt_length = prompt_length
        self.decoding = decoding

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scaled = scores.float()
        if self.temperature != 1:
            scaled = scaled / self.temperature
        scaled = self.decoding.narrow(input_ids, scaled)
        position = input_ids.shape[1] - self.prompt_length
        draws = self.uniforms[:, position : position + 1]
        # In transformers' own copy of the logits: greedy decoding takes the highest.
        return scores.scatter_(1, inverse(scaled, draws), float("inf"))


def inverse(scores: Tensor, draws: Tensor) -> Tensor:  # [B, V], [B, 1] -> [B, 1]
    """The token at which the cumulative distribution passes each draw."""
    cumulative = scores.softmax(-1).cumsum(-1)
    # Scaled by the total, which rounding leaves next to 1, so that every draw hits a token.
    threshold = draws * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, threshold, right=True)
    return chosen.clamp_max(scores.shape[-1] - 1)


class _UntilSomeEnd(StoppingCriteria):
    """Stops the whole batch when LEAVING of its answers have ended."""

    def __init__(self, ends: Tensor, rows: int, stops: StopStrings | None = None) -> None:
        self.ends, self.stops = ends, stops
        self.ended = torch.zeros(rows, dtype=torch.bool, device=ends.device)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.ended = self.ended | torch.isin(input_ids[:, -1], self.ends)
        if self.stops is not None:
            self.ended = self.ended | self.stops(input_ids, scores)
        return self.ended | (self.ended.float().mean() >= LEAVING)


class HFGenerate:
    """The policy itself draws, by ``generate``; its weights are always the newest."""

    tells_logprobs = False

    def __init__(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.policy, self.tokenizer = policy, tokenizer

    def update(self) -> None:
        pass

    def rest(self) -> None:
        pass

    @torch.no_grad()
    def generate(
        self,
        prompts: list[list[int]],
        limit: int,
        *,
        uniforms: Tensor | None,
        temperature: float,
        decoding: Decoding = PLAIN,
    ) -> Generated:
        device, pad = self.policy.device, self.tokenizer.pad_token_id
        encoded = self.tokenizer.pad(
            {"input_ids": prompts}, padding_side="left", return_tensors="pt"
        ).to(device)
        ids, attention = encoded["input_ids"], encoded["attention_mask"]
        width = ids.shape[1]

        tokens = torch.full((len(prompts), limit), pad, dtype=torch.int64, device=device)
        rows = torch.arange(len(prompts), device=device)
        cache = roomy_cache(self.policy)
        while True:
            ids, cache, ended = self._go_on(
                ids, attention, cache, width,
                limit=limit, temperature=temperature, decoding=decoding,
                uniforms=None if uniforms is None else uniforms[rows],
            )  # fmt: skip
            made = ids[:, width:]
            tokens[rows, : made.shape[1]] = made
            stay = [] if ended is None else (~ended).nonzero().squeeze(-1)
            if made.shape[1] == limit or not len(stay):
                return Generated(tokens[:, : made.shape[1]], None)

            # What cannot leave a cache stays, and whatever is drawn after its end is of no matter.
            if not _can_be_cut(cache):
                stay = torch.arange(len(ids), device=device)
            rows, ids = rows[stay], ids[stay]
            more = torch.ones(len(stay), ids.shape[1] - attention.shape[1], device=device)
            attention = torch.cat([attention[stay], more.to(attention.dtype)], dim=1)
            if _can_be_cut(cache):
                cache.batch_select_indices(stay)

    def _go_on(
        self,
        ids: Tensor,  # [B, P + t]
        attention: Tensor,  # [B, P + t]
        cache: Cache | None,
        width: int,
        *,
        limit: int,
        temperature: float,
        decoding: Decoding,
        uniforms: Tensor | None,
    ) -> tuple[Tensor, Cache | None, Tensor | None]:  # [B, P + t'], cache, [B]
        """The answers with more tokens, until enough have ended for the others to go on without
        them, and which those are; or, with None, until all have ended or are full."""
        processors, until = LogitsProcessorList(), StoppingCriteriaList()
        if uniforms is not None:
            processors.append(_CounterSampler(uniforms, temperature, width, decoding))
        ends = end_tokens(self.policy, self.tokenizer)
        stops = StopStrings(decoding, self.tokenizer, width) if decoding.stop else None
        leaves = bool(ends) and len(ids) > 1 and self._may_leave(cache)
        if leaves:
            until.append(_UntilSomeEnd(torch.tensor(ends, device=ids.device), len(ids), stops))
        elif stops is not None:
            until.append(stops)
        plain = GenerationConfig(
            max_length=width + limit,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            eos_token_id=ends or None,
            return_dict_in_generate=True,
        )

        root = root_of(self.policy)
        with _own_settings(root, plain), dense_head_input(root):
            out = self.policy.generate(
                input_ids=ids,
                attention_mask=attention,
                logits_processor=processors,
                stopping_criteria=until,
                generation_config=plain,
                # A sharded model is whole here, and no process waits for the others' tokens: it may
                # have fewer batches.
                synced_gpus=False,
                **({} if cache is None else {CACHE: cache}),
            )

        if leaves:
            return out.sequences, getattr(out, CACHE), until[0].ended
        return out.sequences, None, None

    def _may_leave(self, cache: Cache | None) -> bool:
        """Whether a smaller batch is faster, and generation can stop and go on. A recurrent state
        is not handed out, so a model that has one cannot."""
        large = self.policy.num_parameters() >= SMALL_MODEL
        return large and not self.policy._is_stateful and (cache is None or _can_be_cut(cache))


def _can_be_cut(cache: Cache) -> bool:
    """Whether all a cache holds are keys and values by row."""
    return all(isinstance(layer, DynamicLayer) for layer in cache.layers)


@contextmanager
def _own_settings(model: PreTrainedModel, plain: GenerationConfig) -> Iterator[None]:
    """Keeps what the model's own generation settings ask for (a repetition penalty, say) out of
    sampling: answers must come from the distribution whose log-probabilities are trained."""
    kept = model.generation_config
    model.generation_config = plain
    try:
        yield
    finally:
        model.generation_config = kept


def build(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, memory: float) -> HFGenerate:
    return HFGenerate(policy, tokenizer)
