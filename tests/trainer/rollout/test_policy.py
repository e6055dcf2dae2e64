"""Sampling, masks and log-probabilities of the policy."""

import copy
import types

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPT2Config,
    MixtralConfig,
    OPTConfig,
)

import dfpo.rollout.policy
from dfpo.config import ConfigError
from dfpo.config.draws import Stream, uniforms
from dfpo.rollout.engines.hf_generate import _CounterSampler
from dfpo.rollout.policy import (
    SHIPPED_POLICY,
    attention_of,
    checkpoint_gradients,
    compute_dtype,
    load_policy,
    recomputing,
    set_compute_dtype,
    token_logprobs,
)
from dfpo.rollout.sampler import Sampler
from dfpo.tasks.source import evaluation_rows

LENGTH = 64


@pytest.fixture(scope="module")
def policy():
    return load_policy(SHIPPED_POLICY)


@pytest.fixture(scope="module")
def prompts():
    rows = evaluation_rows(0, 3)
    return [row["prompt"] for splits in rows.values() for split in splits.values() for row in split]


def draw(count, step=0, seed=0):
    return uniforms(seed, Stream.SAMPLING, step, torch.arange(count), LENGTH)


def test_sampler_inverts_the_cumulative_distribution():
    # probabilities .1 .2 .3 .4, cumulative .1 .3 .6 1
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().repeat(6, 1)
    u = torch.tensor([[0.0], [0.0999], [0.1001], [0.2999], [0.6001], [0.999999]])
    chosen = _CounterSampler(u, 1.0, 5)(torch.zeros(6, 5, dtype=torch.int64), scores).argmax(-1)
    assert chosen.tolist() == [0, 0, 1, 1, 3, 3]


def test_sampler_never_picks_an_impossible_token():
    scores = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]]).repeat(2, 1)
    u = torch.tensor([[0.0], [1 - 2**-24]])
    chosen = _CounterSampler(u, 1.0, 0)(torch.zeros(2, 0, dtype=torch.int64), scores).argmax(-1)
    assert chosen.tolist() == [1, 2]


def test_sampler_temperature():
    # logits 0 and ln 3 at temperature 2: weights 1 and sqrt 3, so the first has .366
    scores = torch.tensor([[0.0, 1.0986123]]).repeat(2, 1)
    u = torch.tensor([[0.36], [0.37]])
    chosen = _CounterSampler(u, 2.0, 0)(torch.zeros(2, 0, dtype=torch.int64), scores).argmax(-1)
    assert chosen.tolist() == [0, 1]


def test_logprobs_against_one_unpadded_forward(policy, prompts):
    """Padding, positions and temperature leave each token's log-probability what it is alone."""
    model, tokenizer = policy
    samples = Sampler.of(model, tokenizer).answer(prompts, LENGTH, uniforms=draw(len(prompts)))
    found, entropy = token_logprobs(model, samples, temperature=1.7)
    for row in range(len(prompts)):
        ids = samples.input_ids[row][samples.attention_mask[row].bool()]
        count = int(samples.mask[row].sum())
        logits = model(ids.unsqueeze(0)).logits[0, -count - 1 : -1] / 1.7
        exact = torch.distributions.Categorical(logits=logits)
        torch.testing.assert_close(
            found[row, :count], exact.log_prob(ids[-count:]), atol=2e-5, rtol=1e-5
        )
        torch.testing.assert_close(entropy[row, :count], exact.entropy(), atol=2e-5, rtol=1e-5)


def test_the_output_layer_gets_its_states_dense(policy, prompts):
    """In sampling and in log-probabilities, where transformers cuts views from those of all tokens;
    outside these nothing is left at the layer."""
    model, tokenizer = policy
    head, states = model.get_output_embeddings(), []
    watch = head.register_forward_hook(lambda module, given, made: states.append(given[0]))
    try:
        samples = Sampler.of(model, tokenizer).answer(prompts, 4)
        token_logprobs(model, samples, 1.0)
    finally:
        watch.remove()
    assert len(states) >= 3 and all(state.is_contiguous() for state in states)
    assert states[0].shape[:2] == (len(prompts), 1), "the last token's of each prompt"
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("wish", ["auto", "sdpa", "eager"])
def test_transformers_reports_the_attention(wish):
    model, _ = load_policy(SHIPPED_POLICY, wish)
    assert model.config._attn_implementation == ("sdpa" if wish == "auto" else wish)


def test_flash_attn_is_chosen_where_it_is_installed_and_the_dtype_allows(monkeypatch):
    for installed in (False, True):
        monkeypatch.setattr(dfpo.rollout.policy, "is_flash_attn_2_available", lambda x=installed: x)
        for dtype in (torch.bfloat16, torch.float16):
            expected = "flash_attention_2" if installed else None
            assert attention_of("auto", dtype) == expected
        assert attention_of("auto", torch.float32) is None
        assert attention_of("sdpa", torch.bfloat16) == "sdpa"
    with pytest.raises(ConfigError, match="attention: flash_attention_2 takes bfloat16"):
        attention_of("flash_attention_2", torch.float32)


def test_flash_attn_is_what_transformers_is_asked_for(monkeypatch):
    """By the dtype that the policy multiplies in; its weights are float32 either way."""
    asked = []
    own = AutoModelForCausalLM.from_pretrained

    def from_pretrained(*, attn_implementation, dtype, **source):
        asked.append((attn_implementation, dtype))
        return own(**source, dtype=dtype)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(dfpo.rollout.policy, "is_flash_attn_2_available", lambda: True)
    load_policy(SHIPPED_POLICY, dtype=torch.bfloat16)
    load_policy(SHIPPED_POLICY, dtype=torch.float32)
    load_policy(SHIPPED_POLICY, "sdpa", torch.bfloat16)
    assert asked == [("flash_attention_2", torch.float32), (None, torch.float32),
                     ("sdpa", torch.float32)]  # fmt: skip


@pytest.mark.parametrize("wish", ["auto", "sdpa", "eager"])
def test_transformers_reports_the_attention_in_bfloat16(wish):
    model, _ = load_policy(SHIPPED_POLICY, wish, torch.bfloat16)
    assert model.config._attn_implementation == ("sdpa" if wish == "auto" else wish)


@pytest.mark.parametrize(
    ("wish", "device", "has_bfloat16", "expected"),
    [
        ("auto", "cpu", True, torch.float32),
        ("auto", "cuda", True, torch.bfloat16),
        ("auto", "cuda", False, torch.float32),
        ("float32", "cuda", True, torch.float32),
        ("bfloat16", "cpu", False, torch.bfloat16),
    ],
)
def test_auto_is_bfloat16_on_a_gpu_that_has_it(monkeypatch, wish, device, has_bfloat16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bfloat16)
    assert compute_dtype(wish, torch.device(device)) == expected


def test_bfloat16_multiplies_and_float32_is_kept(prompts):
    """2^-9 is what rounding to bfloat16 changes; nothing is as near to float32 as float32."""
    both = [load_policy(SHIPPED_POLICY, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    (model, tokenizer), (half, _) = both
    assert all(p.dtype == torch.float32 for p in half.parameters())
    samples = Sampler.of(model, tokenizer).answer(prompts, 16, uniforms=draw(len(prompts)))
    multiplied = []
    half.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda module, args, output: multiplied.append(output.dtype)
    )
    (found, entropy), (expected, _) = (token_logprobs(m, samples, 1.0) for m in (half, model))
    assert multiplied == [torch.bfloat16]
    assert found.dtype == entropy.dtype == torch.float32
    difference = (found - expected)[samples.mask].abs()
    assert 1e-6 < difference.mean() < 2e-2
    (found * samples.mask).sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in half.parameters())


def test_a_copy_in_bfloat16_has_weights_of_its_own(prompts):
    """The reference policy is a deepcopy: what wraps its forward pass must not lead back."""
    model, tokenizer = load_policy(SHIPPED_POLICY, dtype=torch.bfloat16)
    first = copy.deepcopy(model)
    samples = Sampler.of(model, tokenizer).answer(prompts[:2], 8)
    with torch.no_grad():
        before, _ = token_logprobs(first, samples, 1.0)
        for parameter in model.parameters():
            parameter.mul_(0.5)
        assert torch.equal(token_logprobs(first, samples, 1.0)[0], before)
        assert not torch.equal(token_logprobs(model, samples, 1.0)[0], before)
    assert isinstance(first.base_model.forward, types.MethodType)
    assert first.base_model.forward.__self__ is first.base_model


def test_float32_is_left_alone():
    module = torch.nn.Linear(2, 2)
    set_compute_dtype(module, torch.float32)
    assert "forward" not in vars(module)


def test_padding_or_none_makes_no_difference(policy):
    """The mask is made whether or not it is full: a full one is causal attention."""
    model, tokenizer = policy
    samples = Sampler.of(model, tokenizer).answer(["1", "1"], 3)
    assert samples.attention_mask.all()
    with torch.no_grad():
        masked = model(samples.input_ids, attention_mask=samples.attention_mask).logits
        plain = model(samples.input_ids).logits
    torch.testing.assert_close(masked, plain, atol=1e-5, rtol=1e-5)


SIZES = {"vocab_size": 60, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES |= {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
DROP = {"dropout": 0.5, "attention_dropout": 0.5}
RANDOM = {
    "opt": OPTConfig(**SIZES, **DROP, ffn_dim=32, word_embed_proj_dim=16, layerdrop=0.5),
    "bloom": BloomConfig(**SIZES, hidden_dropout=0.5, attention_dropout=0.5),
    "falcon": FalconConfig(**SIZES, hidden_dropout=0.5, attention_dropout=0.5),
    "gpt2": GPT2Config(**SIZES, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5),
    "mixtral": MixtralConfig(
        **SIZES, intermediate_size=32, num_key_value_heads=2, num_local_experts=2,
        router_jitter_noise=0.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RANDOM)
def test_layers_computed_again_draw_nothing(name):
    """Training mode, in which transformers computes them again, is where layers drop, skip and
    jitter; log-probabilities must stay those that were sampled with."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(RANDOM[name]).eval()
    ids = torch.arange(3, 23).view(2, 10)
    expected, kept = model(ids).logits, model.config.to_dict()
    checkpoint_gradients(model)
    assert model.config.to_dict() == kept, "it is saved with the policy"
    with recomputing(model):
        assert model.training
        torch.testing.assert_close(model(ids, use_cache=False).logits, expected)
