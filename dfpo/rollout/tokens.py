"""Prompts to tokens, tokens to answers: tokenizers and chat templates, which are a model's code."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dfpo.config import ConfigError
from dfpo.config.types import Prompt, Samples
from dfpo.config.untrusted import GIB, TimeLimit, is_panic, memory_limit, time_limit, try_apart

# For the text of one prompt: of chat templates, which are code, and of tokenizers.
PROMPT_SECONDS, PROMPT_MEMORY, LONGEST_PROMPT = 10.0, 2 * GIB, 10_000_000


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of a prompt; chat messages go through the tokenizer's template, which writes its
    own special tokens and opens the assistant's turn.

    Raises ConfigError for messages without a template, or a prompt of no tokens.
    """
    if isinstance(prompt, str):
        ids = _tokens(tokenizer, prompt)
    elif tokenizer.chat_template is None:
        raise ConfigError(
            "model: its tokenizer has no chat template, but a prompt is chat messages; give text "
            "prompts or a model with a template"
        )
    else:
        text = fill_template(tokenizer, prompt)
        ids = _tokens(tokenizer, text, add_special_tokens=False)

    if not ids:
        raise ConfigError(f"prompt: {prompt!r} is no tokens, must be at least one")
    return ids


def fill_template(tokenizer: PreTrainedTokenizerBase, prompt: list[dict[str, str]]) -> str:
    """Messages in the words of the model's template; ConfigError where it refuses them, or takes
    too long or too much memory."""
    roles = [message.get("role") for message in prompt]
    try:
        with time_limit(PROMPT_SECONDS), memory_limit(PROMPT_MEMORY):
            return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    except TimeLimit:
        raise ConfigError(
            f"prompt: the model's chat template takes more than {PROMPT_SECONDS:g} seconds for "
            f"messages of roles {roles}"
        ) from None
    # A template is code of the model's: it may raise whatever it likes.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(
            f"prompt: the model's chat template refuses messages of roles {roles}: {reason}"
        ) from None


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, **options: Any) -> list[int]:
    if len(text) > LONGEST_PROMPT:
        raise ConfigError(
            f"prompt: {text[:30]!r}... has {len(text)} letters, must have at most {LONGEST_PROMPT}"
        )
    try:
        return tokenizer(text, **options)["input_ids"]
    except BaseException as error:
        if not is_panic(error):
            raise
        raise ConfigError(f"model: its tokenizer fails on {text[:60]!r}: {error}") from None


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt]) -> None:
    """Tries a tokenizer on some prompts in a child process: its rules are compiled code, which
    nothing stops once it runs. Raises ConfigError."""

    def encode_all() -> None:
        for prompt in prompts:
            encode(tokenizer, prompt)

    problem = try_apart(encode_all, 2 * PROMPT_SECONDS, PROMPT_MEMORY)
    if problem is not None:
        raise ConfigError(
            problem
            or f"model: its tokenizer takes more than {2 * PROMPT_SECONDS:g} seconds or "
            f"{PROMPT_MEMORY // GIB} GiB for the first {len(prompts)} prompts, or ends its process"
        )


def decode(tokenizer: PreTrainedTokenizerBase, samples: Samples) -> tuple[list[str], list[list]]:
    """Texts without special tokens, and the token ids they come from."""
    answers = samples.tokens.tolist()
    ids = [row[:length] for row, length in zip(answers, samples.lengths, strict=True)]
    return tokenizer.batch_decode(ids, skip_special_tokens=True), ids


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: those of the model's generation settings and the tokenizer's,
    which a chat template writes after a turn; without any, answers run to their limit."""
    ends = model.generation_config.eos_token_id
    several = list(ends) if isinstance(ends, (list, tuple)) else [ends]
    both = [*several, tokenizer.eos_token_id]
    return list(dict.fromkeys(token for token in both if token is not None))
