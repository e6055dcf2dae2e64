"""Recurrent layers, sliding windows, learned positions under left padding: right, or refused."""

import pytest
import torch
import transformers
from tiny_models import make_tokenizer
from transformers import AutoModelForCausalLM

from dfpo.config import ConfigError, build_config
from dfpo.config.types import Samples
from dfpo.method.critics import build_critic
from dfpo.rollout.policy import token_logprobs
from dfpo.rollout.sampler import Sampler
from dfpo.run.model_checks import check_model

BASE = {"vocab_size": 300, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BASE |= {"hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "intermediate_size": 48}
GROUPED = HEADS | {"num_key_value_heads": 2}
SSM = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_chunk_size": 8}
RIGHT = {
    "GPT2": {"n_positions": 128, "num_attention_heads": 2},
    "OPT": {"num_attention_heads": 2, "ffn_dim": 32, "word_embed_proj_dim": 32},
    "Bloom": {"n_head": 2},
    "Mistral": GROUPED | {"sliding_window": 6},
    "Gemma2": GROUPED | {"head_dim": 8, "sliding_window": 6},
    "GPTNeo": {
        "num_heads": 2, "window_size": 6, "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
    },
    "Mamba": {"state_size": 4},
    "Mamba2": {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "FalconMamba": {"state_size": 4},
    "RecurrentGemma": {
        "num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 96,
        "lru_width": 32, "attention_window_size": 6, "block_types": ["recurrent", "attention"],
    },
    "Jamba": GROUPED | {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 4,
        "expert_layer_offset": 3, "mamba_d_state": 4, "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "Bamba": GROUPED | SSM | {"attn_layer_indices": [1]},
    "Lfm2": GROUPED | {"layer_types": ["conv", "full_attention"]},
}  # fmt: skip
REFUSED = {
    "Rwkv": ({"context_length": 128, "attention_hidden_size": 32}, "reads the padding"),
    "Bert": (HEADS | {"is_decoder": False}, "BertLMHeadModel reads the tokens that it predicts"),
}


def make(name, settings):
    config = getattr(transformers, f"{name}Config")(**BASE | settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # so that what is wrong shows
                parameter.mul_(3)
    return model, Sampler.of(model, make_tokenizer(300, chat=False))


@pytest.mark.parametrize("name", RIGHT)
def test_padding_changes_nothing(name):
    """Log-probabilities, samples and a critic's token states against those one by one."""
    model, sampler = make(name, RIGHT[name])
    check_model(sampler, [5, 9, 77, 30, 44, 12])
    prompts, draws = ["1 plus 2 is something: ", "a"], torch.rand(2, 12)
    samples = sampler.answer(prompts, 12, uniforms=draws)
    critic = build_critic(model, build_config({"reward.low": 0, "reward.high": 1}))
    with torch.no_grad():
        found, _ = token_logprobs(model, samples, 1.0)
        states = critic.hidden(samples)
        for i, prompt in enumerate(prompts):
            count = int(samples.mask[i].sum())
            ids = samples.input_ids[i][samples.attention_mask[i].bool()]
            exact = model(ids.unsqueeze(0)).logits[0, -count - 1 : -1].log_softmax(-1)
            exact = exact.gather(1, ids[-count:, None])[:, 0]
            torch.testing.assert_close(found[i, :count], exact, atol=1e-4, rtol=1e-4)
            alone = sampler.answer([prompt], 12, uniforms=draws[i : i + 1])
            assert torch.equal(alone.tokens[0][alone.mask[0]], ids[-count:])
            own = critic.hidden(samples.part([i]))[0]
            torch.testing.assert_close(states[i, : count + 1], own, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_what_reads_padding_or_ahead_is_refused_by_name(name):
    settings, words = REFUSED[name]
    _, sampler = make(name, settings)
    with pytest.raises(ConfigError, match=words) as error:
        check_model(sampler, [5, 9, 77, 30, 44, 12])
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_cache_that_reads_padding_is_refused(monkeypatch):
    """Log-probabilities are right, but answers are drawn from another distribution."""
    _, sampler = make("Mistral", RIGHT["Mistral"])
    honest = sampler.engine.generate

    def shifted(prompts, limit, *, uniforms, **how):
        return honest(prompts, limit, uniforms=(uniforms + 0.1) % 1, **how)

    monkeypatch.setattr(sampler.engine, "generate", shifted)
    with pytest.raises(ConfigError, match="as it samples"):
        check_model(sampler, [5, 9, 77])


def test_a_model_that_fails_on_padding_is_named(monkeypatch):
    model, sampler = make("Mistral", RIGHT["Mistral"])

    def fails(*_, **__):
        raise RuntimeError("no\nmask")

    monkeypatch.setattr(model.model, "forward", fails)
    with pytest.raises(ConfigError, match="MistralForCausalLM cannot answer .* no mask"):
        check_model(sampler, [5])


def test_a_model_of_short_context_is_asked_what_fits():
    settings = {"n_positions": 18, "num_attention_heads": 2}
    _, sampler = make("GPT2", settings)
    check_model(sampler, [5, 6, 7])
    assert isinstance(sampler.continue_from([[5]], 2), Samples)
