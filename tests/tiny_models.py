"""Freshly made tiny models of three families, each with its own vocabulary and tokenizer."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 2}, 300),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"num_key_value_heads": 1}, 277),
    "gemma": (GemmaConfig, GemmaForCausalLM, {"num_key_value_heads": 4, "head_dim": 8}, 333),
}


def make_tokenizer(size, *, chat=True, end="</s>"):
    """Bytes, so that any text goes through, and ``size`` tokens in all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<s>", "</s>"]
    special += [f"<extra{i}>" for i in range(size - len(alphabet) - len(special))]
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token=end, pad_token="<pad>",
        chat_template=CHAT if chat else None,
    )  # fmt: skip


def make_model(folder, family="llama", *, chat=True, context=128):
    """Saves a model of two layers and its tokenizer; returns the folder."""
    config_class, model_class, more, size = FAMILIES[family]
    tokenizer = make_tokenizer(size, chat=chat)
    torch.manual_seed(0)
    model = model_class(config_class(**_shape(size, context), **more))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_reward_model(folder):
    """A sequence-classification model with one output."""
    tokenizer = make_tokenizer(300)
    torch.manual_seed(1)
    config = LlamaConfig(**_shape(300, 256), num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _shape(size, context):
    return {
        "vocab_size": size, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": context,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
