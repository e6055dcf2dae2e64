"""The policy: a transformers causal language model, its sampling and its log-probabilities."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dfpo.config import ConfigError

SHIPPED_POLICY = Path(str(resources.files("dfpo"))) / "assets" / "policy"


def load_policy(path: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in float32 and tokenizer of a transformers directory; prompts are padded left.

    Raises ConfigError where ``path`` is no such directory.
    """
    if not (Path(path) / "config.json").is_file():
        raise ConfigError(
            f"model: {path} holds no config.json, must be a transformers model directory"
        )
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval(), tokenizer


class Samples(NamedTuple):
    """Answers to a batch of prompts; prompts padded left to P, answers right to T."""

    input_ids: Tensor  # [B, P + T]
    attention_mask: Tensor  # [B, P + T], prompt and answer tokens
    mask: Tensor  # [B, T] bool, answer tokens including the end token
    truncated: Tensor  # [B] bool, no end token within the limit


class _CounterSampler(LogitsProcessor):
    """Turns greedy decoding into sampling: token n of answer b is the inverse of the cumulative
    distribution at uniform (b, n). One uniform per token, so paired arms stay paired."""

    def __init__(self, uniforms: Tensor, temperature: float, prompt_length: int) -> None:
        self.uniforms = uniforms  # [B, T]
        self.temperature = temperature
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulative = (scores.float() / self.temperature).softmax(-1).cumsum(-1)
        position = input_ids.shape[1] - self.prompt_length
        # Scaled by the total, which rounding leaves next to 1, so that every draw hits a token.
        threshold = self.uniforms[:, position : position + 1] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, threshold, right=True)
        chosen = chosen.clamp_max(scores.shape[-1] - 1)
        return torch.full_like(scores, float("-inf")).scatter(1, chosen, 0.0)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int,
    *,
    uniforms: Tensor | None = None,  # [B, T]
    temperature: float = 1.0,
) -> Samples:
    """Answers to the prompts: sampled with the given uniforms, or greedy without them."""
    encoded = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
    prompt_length = encoded["input_ids"].shape[1]
    ends = _end_tokens(model, tokenizer)
    processors = LogitsProcessorList()
    if uniforms is not None:
        processors.append(_CounterSampler(uniforms, temperature, prompt_length))
    sequences = model.generate(
        input_ids=encoded["input_ids"],
        attention_mask=encoded["attention_mask"],
        logits_processor=processors,
        generation_config=GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=ends,
        ),
    )
    answers = sequences[:, prompt_length:]
    is_end = torch.isin(answers, torch.tensor(ends, device=answers.device))
    # A token counts while no end token stands before it.
    mask = is_end.cumsum(-1) - is_end.int() == 0
    attention_mask = torch.cat([encoded["attention_mask"], mask.to(torch.int64)], dim=1)
    return Samples(sequences, attention_mask, mask, ~is_end.any(-1))


def decode(tokenizer: PreTrainedTokenizerBase, samples: Samples) -> tuple[list[str], list[list]]:
    """Texts without special tokens, and the token ids they come from."""
    answers = samples.input_ids[:, -samples.mask.shape[1] :]
    ids = [row[keep].tolist() for row, keep in zip(answers, samples.mask, strict=True)]
    return tokenizer.batch_decode(ids, skip_special_tokens=True), ids


def token_logprobs(
    model: PreTrainedModel, samples: Samples, temperature: float
) -> tuple[Tensor, Tensor]:  # [B, T], [B, T]
    """Log-probability of each answer token and the entropy of its distribution."""
    length = samples.mask.shape[1]
    logits = model(
        input_ids=samples.input_ids,
        attention_mask=samples.attention_mask,
        position_ids=positions(samples.attention_mask),
        logits_to_keep=length + 1,
    ).logits
    logprobs = (logits[:, -length - 1 : -1].float() / temperature).log_softmax(-1)
    chosen = logprobs.gather(-1, samples.input_ids[:, -length:].unsqueeze(-1)).squeeze(-1)
    entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(-1)
    return chosen, entropy


def positions(attention_mask: Tensor) -> Tensor:  # [B, L] -> [B, L]
    """Position of each token in its own sequence, whatever the padding before it."""
    return (attention_mask.cumsum(-1) - 1).clamp_min(0)


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    return list(ends) if isinstance(ends, (list, tuple)) else [ends]
