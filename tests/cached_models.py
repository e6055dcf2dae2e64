"""Models whose keys and values are kept in different ways, for the shipped policy's tokenizer."""

from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

SMALL = {"vocab_size": 75, "pad_token_id": 0}
MODELS = {
    "qwen2": Qwen2Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, **SMALL,
    ),
    "llama": LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, **SMALL
    ),
    "learned positions": GPT2Config(n_embd=64, n_layer=2, n_head=4, **SMALL),
    "sliding window": MistralConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=8, **SMALL,
    ),
}  # fmt: skip
