"""vLLM on the policy's own GPU: it wakes to sample, takes the policy's weights, and sleeps while
the policy trains.

Written against the interface of vLLM 0.33: tests hold its calls to the signatures in vLLM's
sources. No GPU has run it.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dfpo.config import ConfigError
from dfpo.rollout.adapters import View
from dfpo.rollout.decoding import PLAIN, Decoding
from dfpo.rollout.engines import EngineError, Generated
from dfpo.rollout.policy import context_length
from dfpo.rollout.processes import Processes
from dfpo.rollout.tokens import end_tokens

# Its engine in this process, so that weights are handed over as tensors and not through a pipe.
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
# Level 2 keeps no weights: after an update they are old anyway.
SLEEP_LEVEL = 2


class VLLM:
    """Another model of the same weights, whose kernels and precision are vLLM's own."""

    tells_logprobs = True

    def __init__(
        self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, memory: float
    ) -> None:
        self.policy, self.tokenizer, self.memory = policy, tokenizer, memory
        self.model: Any = None  # vllm.LLM, made when it is first asked
        self.is_stale = True  # whether the policy has newer weights

    def update(self) -> None:
        self.is_stale = True

    def rest(self) -> None:
        """Gives the GPU's memory back to training, weights and cache."""
        if self.model is not None and not self.is_asleep:
            self.model.sleep(level=SLEEP_LEVEL)
            self.is_asleep = self.is_stale = True

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
        self._wake()
        parameters = self._parameters(len(prompts), limit, uniforms, temperature, decoding)
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        try:
            outputs = self.model.generate(asked, parameters, use_tqdm=False)
        # vLLM raises many kinds of error; a run that meets one has its checkpoint.
        except Exception as error:  # noqa: BLE001
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise EngineError(f"rollout.engine: vllm failed: {reason}") from error

        return self._tensors([output.outputs[0] for output in outputs])

    def _wake(self) -> None:
        """Memory for the weights, the weights, then memory for the cache: never all three and the
        old weights at once."""
        if self.model is None:
            self.model, self.is_asleep = self._load(), False
        if self.is_asleep:
            self.model.wake_up(tags=["weights"])
        if self.is_stale:
            weights = self.policy.state_dict().items()
            self.model.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
            self.model.reset_prefix_cache()
            self.is_stale = False
        if self.is_asleep:
            self.model.wake_up(tags=["kv_cache"])
            self.is_asleep = False

    def _load(self) -> Any:
        """The policy's architecture with weights yet to come."""
        os.environ |= IN_PROCESS
        from vllm import LLM

        dtype = getattr(self.policy.base_model, "compute_dtype", torch.float32)
        with tempfile.TemporaryDirectory() as folder:
            self.policy.config.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            return LLM(
                model=folder,
                load_format="dummy",
                skip_tokenizer_init=True,
                dtype=str(dtype).removeprefix("torch."),
                max_model_len=context_length(self.policy, self.tokenizer),
                gpu_memory_utilization=self.memory,
                enable_sleep_mode=True,
                # Of the distribution that is drawn from, temperature included.
                logprobs_mode="processed_logprobs",
                # No sampling settings of the model's own.
                generation_config="vllm",
                seed=0,
            )

    def _parameters(
        self,
        count: int,
        limit: int,
        uniforms: Tensor | None,
        temperature: float,
        decoding: Decoding,
    ) -> list[Any]:  # vllm.SamplingParams
        """Of each request; its own draws are seeded with its answer's first uniforms. Stop strings
        would need a tokenizer of vLLM's own: answers run on and are cut."""
        from vllm import SamplingParams

        ends = end_tokens(self.policy, self.tokenizer)
        seeds = [None] * count if uniforms is None else seeds_of(uniforms)
        return [
            SamplingParams(
                temperature=0.0 if uniforms is None else temperature,
                top_p=decoding.top_p,
                top_k=decoding.top_k,
                max_tokens=limit,
                stop_token_ids=ends,
                ignore_eos=True,
                logprobs=0,
                detokenize=False,
                seed=seed,
            )
            for seed in seeds
        ]

    def _tensors(self, outputs: list[Any]) -> Generated:  # vllm.CompletionOutput
        device = self.policy.device
        longest = max(len(output.token_ids) for output in outputs)
        tokens = torch.full((len(outputs), longest), self.tokenizer.pad_token_id)
        logprobs = torch.zeros(len(outputs), longest)
        for i, output in enumerate(outputs):
            ids = list(output.token_ids)
            told = [known[token].logprob for known, token in zip(output.logprobs, ids, strict=True)]
            tokens[i, : len(ids)] = torch.tensor(ids)
            logprobs[i, : len(ids)] = torch.tensor(told)

        return Generated(tokens.to(device), logprobs.to(device))


def seeds_of(uniforms: Tensor) -> list[int]:  # [B, T]
    """A seed for each answer, from the 24 bits of each of its first two uniforms."""
    words = (uniforms[:, :2].double() * 2**24).long().tolist()
    return [sum(word << 24 * place for place, word in enumerate(row)) for row in words]


def build(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, memory: float) -> VLLM:
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "rollout.engine: vllm is not installed, must be for this engine: pip install "
            "'dfpo[vllm]'"
        )
    if isinstance(policy, View):
        raise ConfigError("rollout.engine: is vllm, must be transformers with lora.rank")
    if Processes.here().count > 1:
        raise ConfigError("rollout.engine: is vllm, must be transformers with several processes")

    return VLLM(policy, tokenizer, memory)
