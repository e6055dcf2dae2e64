"""The policy: a transformers causal language model, its sampling and its log-probabilities."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import (
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available

from dfpo.config import ConfigError
from dfpo.config.types import Samples
from dfpo.config.untrusted import read_pretrained
from dfpo.rollout import logprobs
from dfpo.rollout.adapters import base_of, is_adapter, merged
from dfpo.rollout.batches import Parts, by_parts
from dfpo.rollout.sharding import as_forward, whole

# Below this many parameters a token is too little work to share between threads, a step of the
# optimiser may be long, and the calls themselves are what takes time.
SMALL_MODEL = 2_000_000
SHIPPED = Path(str(resources.files("dfpo.tasks"))) / "starting_policies"
SHIPPED_POLICY = SHIPPED / "suite"
# Numbers of a layer by which it draws in training mode.
RANDOM_IN_TRAINING = re.compile("drop|jitter")


def shipped_policy(task: str | None) -> Path:
    """The starting policy that ships for a task: each suite has one of its own."""
    own = SHIPPED / (task or "").partition(":")[0]
    return own if own != SHIPPED and own.is_dir() else SHIPPED_POLICY


def attention_of(wish: str, dtype: torch.dtype) -> str | None:
    """What transformers calls the attention to run: flash-attn where it is installed and takes the
    dtype, else its own choice, which is sdpa for every model that has it; or what is wished for."""
    half = dtype in (torch.bfloat16, torch.float16)
    if wish == "auto":
        return "flash_attention_2" if half and is_flash_attn_2_available() else None
    if wish == "flash_attention_2" and not half:
        raise ConfigError(f"attention: {wish} takes bfloat16 or float16, the policy is {dtype}")
    return wish


def _unread_mask(
    *args: Any,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **kwargs: Any,
) -> Tensor | None:
    """transformers' mask for sdpa, made without asking whether ``attention_mask`` is full.

    Where it is, a kernel without a mask would serve. But the question makes the host wait for the
    device in every forward pass (transformers 5.23, masking_utils.py, _ignore_causal_mask_sdpa),
    and prompts and answers differ in length.
    """
    skip = allow_is_causal_skip and attention_mask is None
    return sdpa_mask(*args, attention_mask=attention_mask, allow_is_causal_skip=skip, **kwargs)


AttentionMaskInterface.register("sdpa", _unread_mask)


def compute_dtype(wish: str, device: torch.device) -> torch.dtype:
    """``dtype`` on this device; auto is bfloat16 on a GPU that has it, else float32."""
    if wish != "auto":
        return getattr(torch, wish)
    half = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if half else torch.float32


def set_compute_dtype(module: nn.Module, dtype: torch.dtype) -> None:
    """From here on ``module`` multiplies in ``dtype``, by autocast inside its own forward pass;
    its weights, and so the optimiser's steps, stay float32."""
    if dtype == torch.float32:
        return
    forward = type(module).forward

    def cast(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(next(self.parameters()).device.type, dtype):
            return forward(self, *args, **kwargs)

    # Bound anew by deepcopy, as a closure over the module would not be.
    module.forward = MethodType(cast, module)
    module.compute_dtype = dtype


def compute_in(policy: PreTrainedModel, dtype: torch.dtype) -> None:
    """``set_compute_dtype`` of the policy's trunk and of its head."""
    for part in (policy.base_model, policy.get_output_embeddings()):
        set_compute_dtype(part, dtype)


def checkpoint_gradients(model: nn.Module) -> None:
    """From here on, where ``recomputing`` says so, backward computes each layer again from the
    state before it. transformers does so in training mode alone, in which nothing may be dropped:
    a policy's log-probabilities are those it sampled with."""
    config = copy.copy(model.config)
    _draw_nothing(config)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # What layers hand to functional dropout, skip a whole layer by, or jitter a router by.
        _draw_nothing(module)
        # Some ask the configuration at each call; the model's own, which is saved, stays.
        if module is not model and getattr(module, "config", None) is model.config:
            module.config = config
    # Renamed in transformers 5.24.
    old = model.gradient_checkpointing_enable
    getattr(model, "activation_checkpointing_enable", old)({"use_reentrant": False})
    model.recomputes = True


def _draw_nothing(owner: Any) -> None:
    for name, value in list(vars(owner).items()):
        if isinstance(value, float) and RANDOM_IN_TRAINING.search(name):
            setattr(owner, name, 0.0)


@contextmanager
def recomputing(model: nn.Module) -> Iterator[None]:
    """Gradients of what is computed inside cost memory for the layers' states alone, if the model
    was made so; else nothing is another."""
    if not getattr(model, "recomputes", False):
        yield
        return
    model.train()
    try:
        yield
    finally:
        model.eval()


def load_policy(
    path: str | Path,
    attention: str = "auto",
    dtype: torch.dtype = torch.float32,
    *,
    merge: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a transformers directory, a GGUF file or a directory of a LoRA
    adapter: weights in float32, trunk and head multiply in ``dtype``; prompts are padded left. An
    adapter is worked into its model's weights, or with ``merge`` false left to the caller.

    Raises ConfigError where ``path`` holds no causal language model or no tokenizer.
    """
    path = Path(path)
    if is_adapter(path):
        return _with_adapter(path, attention, dtype, merge=merge)
    source: dict[str, Any] = {"pretrained_model_name_or_path": path}

    if path.suffix == ".gguf":
        if not path.is_file():
            raise ConfigError(f"model: there is no file {path}")
        source |= {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    elif not (path / "config.json").is_file():
        raise ConfigError(
            f"model: {path} holds no config.json, must be a transformers model directory"
        )

    model, report = read_pretrained(
        AutoModelForCausalLM, "model", "a causal language model", path,
        **source, dtype=torch.float32, output_loading_info=True,
        attn_implementation=attention_of(attention, dtype),
    )  # fmt: skip

    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ConfigError(
            f"model: {path} lacks the weights {missing}, must hold all of a causal language model"
        )

    _check_finite(model, path)
    if path.suffix == ".gguf":
        # Its weights are plain float32 once read, but the model would refuse to be saved.
        model.hf_quantizer.remove_quantization_config(model)
    compute_in(model, dtype)
    tokenizer = read_pretrained(
        AutoTokenizer, "model", "a tokenizer", path, **source, padding_side="left"
    )
    if tokenizer.pad_token_id is None:
        # Padding is masked everywhere, so any token serves where there is no end token either.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)

    return model.eval(), tokenizer


def _with_adapter(
    path: Path, attention: str, dtype: torch.dtype, *, merge: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = load_policy(base_of(path), attention, dtype)
    if merge:
        model = merged(model, path)
        compute_in(model, dtype)
    return model.eval(), tokenizer


def _check_finite(model: PreTrainedModel, path: Path) -> None:
    """A number that is none would be every answer's, without a word."""
    for name, weight in model.named_parameters():
        if not weight.detach().sum().isfinite():
            raise ConfigError(f"model: {path} has NaN or infinity in {name}, must be finite")


def context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Most tokens, of prompt and answer together, that model and tokenizer are made for."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(positions or sys.maxsize, tokenizer.model_max_length)


def token_logprobs(
    model: PreTrainedModel, samples: Samples, temperature: float, *, entropy: bool = True
) -> tuple[Tensor, Tensor | None]:  # [B, T], [B, T]
    """Log-probability of each answer token and the entropy of its distribution, in float32; the
    entropy has no gradient, and is None where it is not asked for.

    Where the logits would be more than ``logprobs.logits_at_once``, they are made in parts, unless
    the model does more to them than its head.
    """
    return as_forward(model, lambda: _token_logprobs(model, samples, temperature, entropy=entropy))


def _token_logprobs(
    model: PreTrainedModel, samples: Samples, temperature: float, *, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    tokens = samples.tokens
    # Each token is predicted by the state before it.
    before = slice(-tokens.shape[1] - 1, -1)
    inputs = {
        "input_ids": samples.input_ids,
        "attention_mask": samples.attention_mask,
        "position_ids": positions(samples.attention_mask),
        "use_cache": False,
    }

    vocabulary = model.get_output_embeddings().weight.shape[0]
    few = tokens.numel() * vocabulary <= logprobs.logits_at_once(tokens.device)
    if few or not _head_is_last(model):
        with dense_head_input(model):
            logits = model(**inputs, logits_to_keep=tokens.shape[1] + 1).logits[:, before]
        return logprobs.from_logits(logits, tokens, temperature, entropy=entropy)
    hidden = model.base_model(**inputs).last_hidden_state[:, before]
    parts = logprobs.from_hidden(
        hidden.flatten(0, 1), tokens.flatten(), model.get_output_embeddings(), temperature,
        entropy=entropy,
    )  # fmt: skip

    return tuple(None if x is None else x.view_as(tokens) for x in parts)


@contextmanager
def dense_head_input(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the output layer gets its states as a matrix of their own. As a view of the states of
    all tokens, which transformers hands on where logits of the last are asked for, torch 2.13
    multiplies them on a CPU answer by answer, with a copy of the weights for each: 32 of them in
    bfloat16 in 8.5 s in place of .02."""
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, states: (states[0].contiguous(), *states[1:]))
    try:
        yield
    finally:
        hook.remove()


def logprobs_by_parts(
    model: PreTrainedModel,
    samples: Samples,
    temperature: float,
    micro_tokens: int,
    *,
    entropy: bool = True,
) -> dict[str, Tensor]:
    """``token_logprobs`` without gradients, ``micro_tokens`` at a time: "logprobs" and "entropy",
    [B, T] each, 0 off the answers."""

    def compute(part: Samples, rows: list[int]) -> Parts:
        chosen, spread = token_logprobs(model, part, temperature, entropy=entropy)
        named = {"logprobs": chosen} | ({} if spread is None else {"entropy": spread})
        kept = {name: torch.where(part.mask, x, 0.0) for name, x in named.items()}
        return Parts(kept, {})

    with whole(model):
        return by_parts(compute, samples, micro_tokens).tokens


_HEAD_IS_LAST: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@torch.no_grad()
def _head_is_last(model: PreTrainedModel) -> bool:
    """Whether logits are the head of the last hidden states and no more, asked once of a model:
    some scale or cap them."""
    if model not in _HEAD_IS_LAST:
        ids = torch.arange(2, device=model.device).unsqueeze(0)
        hidden = model.base_model(input_ids=ids).last_hidden_state
        own = model.get_output_embeddings()(hidden)
        _HEAD_IS_LAST[model] = torch.equal(own.float(), model(input_ids=ids).logits.float())
    return _HEAD_IS_LAST[model]


def positions(attention_mask: Tensor) -> Tensor:  # [B, L] -> [B, L]
    """Position of each token in its own sequence, whatever the padding before it."""
    return (attention_mask.cumsum(-1) - 1).clamp_min(0)
