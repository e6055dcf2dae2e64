"""transformers' continuous batching: requests come and go in a paged cache, without padding.

Token n of answer b is drawn with uniform (b, n), as by ``hf_generate``, so that an answer does not
depend on what is drawn beside it. All requests wait before the loop starts: which of them share a
pass is then no matter of time, and the same command gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import cb_logits_processors as processors

from dfpo.config import ConfigError
from dfpo.rollout.adapters import View
from dfpo.rollout.decoding import PLAIN, Decoding
from dfpo.rollout.engines import EngineError, Generated
from dfpo.rollout.engines.hf_generate import inverse
from dfpo.rollout.tokens import end_tokens

PAGE = 32  # tokens of a cache's page
PASS = 2048  # tokens of a pass, of prompts that begin and of answers that go on


class _Chooser(processors.ContinuousBatchingLogitsProcessor):
    """Leaves one token to each request, with its uniform or the greedy one, and keeps its
    log-probability: what the library tells is that of what is left."""

    supported_kwargs: dict[str, type] = {}
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(
        self, uniforms: Tensor | None, temperature: float, decoding: Decoding = PLAIN
    ) -> None:
        self.uniforms = None if uniforms is None else uniforms.cpu()  # [B, T]
        self.temperature = temperature
        self.decoding = decoding
        self.logprobs: dict[tuple[int, int], Tensor] = {}  # (answer, position) -> scalar
        self._places: list[tuple[int, int]] = []  # of the pass at hand

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:  # [N] int32
        """The requests' uniforms, whose bits travel as integers."""
        states = [request.state for request in requests_with_new_token]
        self._places = [(int(state.request_id), position_of(state)) for state in states]
        draws = torch.zeros(len(states))
        if self.uniforms is not None and states:
            rows, positions = zip(*self._places, strict=True)
            draws = self.uniforms[list(rows), list(positions)]
        return draws.view(torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:  # [N, V], [M]
        scaled = scores.float() / (1.0 if self.uniforms is None else self.temperature)
        draws = tensor_arg[: len(scores)].view(torch.float32).unsqueeze(-1)
        chosen = scaled.argmax(-1, keepdim=True)
        if self.uniforms is not None:
            scaled = self.decoding.narrow(None, scaled)
            chosen = inverse(scaled, draws)
        told = scaled.log_softmax(-1).gather(-1, chosen).squeeze(-1)
        self.logprobs |= zip(self._places, told, strict=False)

        return torch.full_like(scores, float("-inf")).scatter(1, chosen, 0.0)


def position_of(state: Any) -> int:
    """How many tokens of its answer a request has, those before it was evicted included."""
    first = state._true_initial_tokens or len(state.initial_tokens)
    return len(state.initial_tokens) - first + state.generated_len()


class Continuous:
    """The policy itself draws, in pages; its weights are always the newest."""

    # Its kernels are others than the trainer's, so its log-probabilities are a little too.
    tells_logprobs = True

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
        chooser = _Chooser(uniforms, temperature, decoding)
        with self._manager(prompts, limit, chooser) as manager:
            ends = end_tokens(self.policy, self.tokenizer) or None
            for i, prompt in enumerate(prompts):
                manager.add_request(
                    prompt, request_id=str(i), max_new_tokens=limit, eos_token_id=ends
                )
            manager.start()
            answers = _collect(manager, len(prompts))

        longest, device = max(map(len, answers.values())), self.policy.device
        tokens = torch.full((len(prompts), longest), self.tokenizer.pad_token_id, device=device)
        logprobs = torch.zeros(len(prompts), longest, device=device)
        for i, ids in answers.items():
            tokens[i, : len(ids)] = torch.tensor(ids, device=device)
            logprobs[i, : len(ids)] = torch.stack([chooser.logprobs[i, t] for t in range(len(ids))])

        return Generated(tokens, logprobs)

    @contextmanager
    def _manager(
        self, prompts: list[list[int]], limit: int, chooser: _Chooser
    ) -> Iterator[Any]:  # ContinuousBatchingManager
        """A manager whose cache has room for all requests at once; global random states, which it
        seeds, are as before afterwards."""
        pages = sum(-(-(len(prompt) + limit) // PAGE) for prompt in prompts)
        settings = ContinuousBatchingConfig(
            page_size=PAGE,
            num_blocks=pages + 2,
            max_batch_tokens=max(PASS, len(prompts)),
            max_requests_per_batch=len(prompts),
            # The chooser is called in every pass, which a recorded graph does not do.
            use_cuda_graph=False,
            use_async_batching=False,
            seed=0,
        )

        device = self.policy.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            manager = self.policy.init_continuous_batching(
                GenerationConfig(do_sample=False, max_new_tokens=limit, eos_token_id=-1), settings
            )
            manager.logit_processor = processors.ContinuousBatchingLogitsProcessorList(
                LogitsProcessorList([chooser])
            )
            manager.logit_processor.tensors_required = 1
            try:
                yield manager
            finally:
                manager.stop(block=True, hard_stop=True)
                manager.destroy()


def _collect(manager: Any, count: int) -> dict[int, list[int]]:
    """The tokens of all answers, as they end. Raises EngineError."""
    answers: dict[int, list[int]] = {}
    while len(answers) < count:
        result = manager.get_result(timeout=1)
        if result is None:
            if not manager.is_running():
                raise EngineError("rollout.engine: continuous ended before its answers")
        elif result.error is not None:
            raise EngineError(f"rollout.engine: continuous failed: {result.error}")
        elif result.is_finished():
            answers[int(result.request_id)] = result.generated_tokens

    return answers


def build(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, memory: float) -> Continuous:
    if isinstance(policy, View):
        raise ConfigError(
            "rollout.engine: is continuous, must be transformers with lora.rank: its pages know "
            "one model, not an adapter's view of it"
        )
    if hasattr(policy.base_model, "compute_dtype"):
        raise ConfigError(
            "rollout.engine: is continuous, must be transformers with dtype bfloat16: its pages "
            "hold keys and values of one dtype, and autocast makes two"
        )

    return Continuous(policy, tokenizer)
