"""Prompts -> Samples: a policy's answers, a micro-batch at a time, shared out over processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dfpo.config.types import Prompt, Samples, row_index
from dfpo.rollout.adapters import root_of
from dfpo.rollout.batches import micro_batches, share_of
from dfpo.rollout.compiled import as_written
from dfpo.rollout.decoding import PLAIN, Decoding
from dfpo.rollout.engines import Engine, build_engine
from dfpo.rollout.functions import RolloutFunction
from dfpo.rollout.processes import Processes
from dfpo.rollout.sharding import whole
from dfpo.rollout.tokens import encode, end_tokens


@dataclass(frozen=True)
class Sampler:
    """A policy, its tokenizer, and the engine that draws its answers."""

    policy: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    engine: Engine
    micro_tokens: int  # tokens, padding included, that are sampled at once; 0 without a bound
    function: RolloutFunction | None = None  # what plays the answers of ``play``, if not the engine

    @staticmethod
    def of(
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        engine: str = "transformers",
        micro_tokens: int = 0,
        function: RolloutFunction | None = None,
        engine_memory: float = 0.3,
    ) -> Sampler:
        engine = build_engine(engine, policy, tokenizer, engine_memory)
        return Sampler(policy, tokenizer, engine, micro_tokens, function)

    def answer(
        self,
        prompts: list[Prompt],
        limit: int,
        *,
        uniforms: Tensor | None = None,  # [B, limit]
        temperature: float = 1.0,
        decoding: Decoding = PLAIN,
    ) -> Samples:
        """Answers to the prompts: sampled with the given uniforms, or greedy without them."""
        ids = [encode(self.tokenizer, prompt) for prompt in prompts]
        return self.continue_from(
            ids, limit, uniforms=uniforms, temperature=temperature, decoding=decoding
        )

    @torch.no_grad()
    def continue_from(
        self,
        ids: list[list[int]],
        limit: int,
        *,
        uniforms: Tensor | None = None,  # [B, limit]
        temperature: float = 1.0,
        decoding: Decoding = PLAIN,
    ) -> Samples:
        """The same from token ids, of a prompt or of a prompt and the beginning of an answer."""
        processes, device = Processes.here(), self.policy.device
        lengths, limits = [len(prompt) for prompt in ids], [limit] * len(ids)
        batches = micro_batches(lengths, limits, self.micro_tokens, processes.count)

        tokens = torch.zeros(len(ids), limit, dtype=torch.int64, device=device)
        logprobs = None
        if self.engine.tells_logprobs:
            logprobs = torch.zeros(len(ids), limit, device=device)
        with whole(self.policy), as_written(root_of(self.policy)):
            for rows in share_of(batches, lengths, limits, processes):
                draws = uniforms
                if uniforms is not None and len(rows) < len(ids):
                    draws = uniforms[row_index(rows, device)]
                made = self.engine.generate(
                    [ids[i] for i in rows], limit,
                    uniforms=draws, temperature=temperature, decoding=decoding,
                )  # fmt: skip
                place = slice(None) if len(rows) == len(ids) else row_index(rows, device)
                tokens[place, : made.tokens.shape[1]] = made.tokens
                if logprobs is not None:
                    logprobs[place, : made.logprobs.shape[1]] = made.logprobs

        if logprobs is not None:
            logprobs = processes.sum(logprobs)
        return self._samples(ids, processes.sum(tokens), logprobs)

    def _samples(
        self,
        ids: list[list[int]],
        tokens: Tensor,  # [B, limit]
        logprobs: Tensor | None,  # [B, limit]
    ) -> Samples:
        """Prompts padded left and answers padded right, up to the longest."""
        encoded = self.tokenizer.pad(
            {"input_ids": ids}, padding_side="left", return_tensors="pt"
        ).to(self.policy.device)

        ends = end_tokens(self.policy, self.tokenizer)
        is_end = torch.isin(tokens, torch.tensor(ends, dtype=tokens.dtype, device=tokens.device))
        # A token counts while no end token stands before it.
        mask = is_end.cumsum(-1) - is_end.int() == 0
        lengths = mask.sum(-1).tolist()
        longest = max(lengths, default=0)
        tokens = torch.where(mask, tokens, self.tokenizer.pad_token_id)[:, :longest]
        mask = mask[:, :longest]
        if logprobs is not None:
            logprobs = torch.where(mask, logprobs[:, :longest], 0.0)

        samples = Samples(
            input_ids=torch.cat([encoded["input_ids"], tokens], dim=1),
            attention_mask=torch.cat([encoded["attention_mask"], mask.to(torch.int64)], dim=1),
            mask=mask,
            truncated=~is_end.any(-1),
            logprobs=logprobs,
        )

        # The host knows them: nothing need ask the device again.
        known = {"prompt_lengths": [len(prompt) for prompt in ids], "lengths": lengths}
        vars(samples).update(known, counts=lengths)
        return samples
