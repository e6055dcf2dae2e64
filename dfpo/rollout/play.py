"""Rows -> answers: one answer of the policy to each prompt, or whatever a rollout function plays.

Of several processes the first one runs the function; the others take their share of each turn that
it asks for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dfpo.config.draws import Draws
from dfpo.config.types import Prompt, Row, Samples
from dfpo.rollout.decoding import PLAIN, Decoding
from dfpo.rollout.functions import Played, RolloutError, Room, Turn, call, read_played
from dfpo.rollout.policy import context_length
from dfpo.rollout.processes import Processes
from dfpo.rollout.sampler import Sampler
from dfpo.rollout.tokens import decode, encode, end_tokens
from dfpo.tasks.source import columns


def play(
    sampler: Sampler,
    rows: list[Row],
    limit: int,
    *,
    draws: Draws | None,
    temperature: float = 1.0,
    decoding: Decoding = PLAIN,
) -> tuple[Samples, list[Row]]:
    """An answer to each row, greedy without ``draws``, and the rows with the columns that the
    sampler's rollout function, if any, adds to them. Raises RolloutError."""
    if sampler.function is None:
        samples = sampler.answer(
            [row["prompt"] for row in rows], limit,
            uniforms=draws and draws.uniforms(limit), temperature=temperature, decoding=decoding,
        )  # fmt: skip
        sampler.engine.rest()
        return samples, rows

    table = _Table(sampler, limit, draws, temperature, decoding)
    played = table.lead(rows) if Processes.here().leads else table.follow()
    sampler.engine.rest()
    more = [
        dict(zip(played.columns, own, strict=True))
        for own in zip(*played.columns.values(), strict=True)
    ] or [{}] * len(rows)

    return samples_of(played, sampler), [row | own for row, own in zip(rows, more, strict=True)]


class _Ask(NamedTuple):
    """A turn that the function asks for."""

    prompts: list[list[int]]
    limit: int


@dataclass
class _Table:
    """Where a function plays: its ``generate``, call by call."""

    sampler: Sampler
    limit: int
    draws: Draws | None
    temperature: float
    decoding: Decoding
    calls: int = field(default=0)

    def lead(self, rows: list[Row]) -> Played:
        """Runs the function; tells the others what comes of it."""
        processes = Processes.here()
        prompts = [row["prompt"] for row in rows]
        ids = [encode(self.sampler.tokenizer, prompt) for prompt in prompts]
        function, tokenizer = self.sampler.function, self.sampler.tokenizer
        extra = columns(rows) | {"generate": self.generate, "tokenizer": tokenizer}

        try:
            returned = call(function, {"prompts": prompts}, extra)
            played = read_played(function, returned, ids, self.room())
        except RolloutError as error:
            failed = error
            return processes.from_lead(lambda: _raise(failed))

        return processes.from_lead(lambda: played)

    def follow(self) -> Played:
        """Takes part in the turns that the first process asks for, until it says what came."""
        while True:
            told = Processes.here().from_lead(lambda: None)
            if not isinstance(told, _Ask):
                return told
            self._turn(told)

    def generate(self, prompts: list[Any], max_new_tokens: int | None = None) -> list[Turn]:
        """What the policy says to each prompt: text, chat messages, or the token ids of a prompt
        and of what was said so far."""
        limit = self.limit if max_new_tokens is None else max_new_tokens
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise RolloutError(f"generate: max_new_tokens is {limit!r}, must be an integer >= 1")
        if not isinstance(prompts, (list, tuple)):
            raise RolloutError(f"generate: prompts is {type(prompts).__name__}, must be a list")

        ids = [self._ids(prompt) for prompt in prompts]
        room = self.room().context - limit
        for number, prompt in enumerate(ids, start=1):
            if len(prompt) > room:
                raise RolloutError(
                    f"generate: prompt {number} has {len(prompt)} tokens, must be at most {room}: "
                    f"the model's context less the {limit} of the turn"
                )

        if not ids:
            return []
        ask = _Ask(ids, limit)
        return self._turn(Processes.here().from_lead(lambda: ask))

    def room(self) -> Room:
        policy, tokenizer = self.sampler.policy, self.sampler.tokenizer
        tokens = policy.get_input_embeddings().num_embeddings
        return Room(vocabulary=tokens, context=context_length(policy, tokenizer))

    def _ids(self, prompt: Prompt | list[int]) -> list[int]:
        if isinstance(prompt, (list, tuple)) and prompt and isinstance(prompt[0], int):
            return list(prompt)
        return encode(self.sampler.tokenizer, prompt)

    def _turn(self, ask: _Ask) -> list[Turn]:
        uniforms = self.draws and self.draws.of_call(self.calls, len(ask.prompts), ask.limit)
        self.calls += 1
        samples = self.sampler.continue_from(
            ask.prompts, ask.limit,
            uniforms=uniforms, temperature=self.temperature, decoding=self.decoding,
        )  # fmt: skip
        texts, token_ids = decode(self.sampler.tokenizer, samples)
        told = [None] * len(texts)
        if samples.logprobs is not None:
            rows = zip(samples.logprobs.tolist(), samples.lengths, strict=True)
            told = [row[:length] for row, length in rows]

        return [Turn(*parts) for parts in zip(texts, token_ids, told, strict=True)]


def samples_of(played: Played, sampler: Sampler) -> Samples:
    """Prompts padded left and answers padded right. An answer that does not end with an end token
    counts as truncated."""
    device, pad = sampler.policy.device, sampler.tokenizer.pad_token_id
    before = max(map(len, played.prompt_ids))
    after = max(map(len, played.completion_ids))

    def left(values: list[list[int]], filler: int) -> Tensor:  # [B, P]
        return torch.tensor([[filler] * (before - len(row)) + row for row in values], device=device)

    def right(values: list[list[Any]], filler: Any) -> Tensor:  # [B, T]
        return torch.tensor([row + [filler] * (after - len(row)) for row in values], device=device)

    prompts, answers = played.prompt_ids, played.completion_ids
    ones = [[1] * len(ids) for ids in prompts], [[1] * len(ids) for ids in answers]
    ends = end_tokens(sampler.policy, sampler.tokenizer)
    samples = Samples(
        input_ids=torch.cat([left(prompts, pad), right(answers, pad)], 1),
        attention_mask=torch.cat([left(ones[0], 0), right(ones[1], 0)], 1),
        mask=right(played.env_mask, False),
        truncated=torch.tensor([ids[-1] not in ends for ids in answers], device=device),
        logprobs=None if played.logprobs is None else right(played.logprobs, 0.0),
    )

    vars(samples).update(
        prompt_lengths=[len(ids) for ids in prompts],
        lengths=[len(ids) for ids in answers],
        counts=[sum(row) for row in played.env_mask],
    )
    return samples


def _raise(error: Exception) -> Any:
    raise error
