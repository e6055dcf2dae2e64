"""Log-probabilities in parts and by a fused kernel, against torch.distributions on all logits."""

import inspect
import sys
import types

import pytest
import torch
from tiny_models import FAMILIES, make_model
from torch.distributions import Categorical
from transformers import Gemma2Config, Gemma2ForCausalLM

import dfpo.rollout.policy
from dfpo.rollout import logprobs
from dfpo.rollout.logprobs import from_hidden
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy, token_logprobs
from dfpo.rollout.sampler import Sampler

N, D, V, TEMPERATURE = 23, 6, 11, 0.7


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    head = torch.nn.Linear(D, V)
    hidden = torch.randn(N, D, requires_grad=True)
    return head, hidden, torch.randint(V, (N,))


def gradients(value, head, hidden):
    weights = torch.linspace(-1, 2, value.numel()).view_as(value)
    return torch.autograd.grad((value * weights).sum(), [hidden, head.weight, head.bias])


@pytest.mark.parametrize("rows", [1, 5, 100])
def test_parts_are_the_whole(inputs, monkeypatch, rows):
    """Whatever the parts, and with a last one that is shorter."""
    head, hidden, tokens = inputs
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", rows * V + 1)
    found, entropy = from_hidden(hidden, tokens, head, TEMPERATURE)
    exact = Categorical(logits=head(hidden) / TEMPERATURE)
    torch.testing.assert_close(found, exact.log_prob(tokens))
    torch.testing.assert_close(entropy, exact.entropy())
    assert not entropy.requires_grad
    expected = gradients(exact.log_prob(tokens), head, hidden)
    for own, other in zip(gradients(found, head, hidden), expected, strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-5)
    assert from_hidden(hidden, tokens, head, TEMPERATURE, entropy=False)[1] is None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_plain_head_has_exact_gradients(monkeypatch, bias, frozen):
    """By differences, in float64; a token whose logit is -inf has neither chance nor gradient."""
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 4 * V)
    head = torch.nn.Linear(D, V, bias=bias).double().requires_grad_(not frozen)
    hidden = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(V - 1, (N,))
    assert logprobs.is_plain(head, hidden)

    def chosen(hidden, *_):
        return from_hidden(hidden, tokens, head, TEMPERATURE)[0]

    assert torch.autograd.gradcheck(chosen, (hidden, *(() if frozen else head.parameters())))
    if bias:
        with torch.no_grad():
            head.bias[-1] = float("-inf")
        found, entropy = from_hidden(hidden, tokens, head, TEMPERATURE)
        less = Categorical(logits=(hidden @ head.weight.T + head.bias)[:, :-1] / TEMPERATURE)
        torch.testing.assert_close(found, less.log_prob(tokens))
        torch.testing.assert_close(entropy, less.entropy())
        (own,) = torch.autograd.grad(found.sum(), hidden)
        (other,) = torch.autograd.grad(less.log_prob(tokens).sum(), hidden)
        torch.testing.assert_close(own, other)


def test_no_other_head_passes_for_a_plain_one():
    hidden, head = torch.randn(3, D), torch.nn.Linear(D, V)
    assert logprobs.is_plain(head, hidden)
    assert not logprobs.is_plain(head, hidden.double()) and not logprobs.is_plain(
        head.half(), hidden.half()
    )
    assert not logprobs.is_plain(type("Scaled", (torch.nn.Linear,), {})(D, V), hidden)
    half = torch.nn.Linear(D, V)
    dfpo.rollout.policy.set_compute_dtype(half, torch.bfloat16)
    hooked = torch.nn.Linear(D, V)
    hooked.register_forward_hook(lambda *_: None)
    assert not logprobs.is_plain(half, hidden) and not logprobs.is_plain(hooked, hidden)
    with torch.autocast("cpu", torch.bfloat16):
        assert not logprobs.is_plain(torch.nn.Linear(D, V), hidden)


def test_no_more_logits_than_asked_for(inputs, monkeypatch):
    """Neither forward nor backward, where they are computed again, runs the head on more rows."""
    head, hidden, tokens = inputs
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 4 * V)
    rows = []
    head.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    found, _ = from_hidden(hidden, tokens, head, TEMPERATURE)
    assert rows == [4] * 5 + [3]
    found.sum().backward()
    assert sorted(rows) == [3] * 2 + [4] * 10


def liger_fused_linear_cross_entropy(
    input, weight, target, bias=None, ce_weight=None, ignore_index=-100, lse_square_scale=0.0,
    label_smoothing=0.0, reduction="mean", softcap=None, return_z_loss=False, accum_dtype=None,
    use_token_scaling=False, return_token_accuracy=False, return_predicted_tokens=False,
    chunk_mem_const=1,
):  # fmt: skip
    """The signature of liger-kernel 0.8.5 (transformers/functional.py), in torch."""
    logits = torch.nn.functional.linear(input, weight, bias)
    return torch.nn.functional.cross_entropy(
        logits, target, ce_weight, ignore_index=ignore_index, reduction=reduction,
        label_smoothing=label_smoothing,
    )  # fmt: skip


@pytest.fixture
def liger(monkeypatch):
    """Counts the calls of a stand-in for liger-kernel, on CPU tensors too."""
    calls = []

    def counted(*args, **kwargs):
        calls.append(kwargs)
        return liger_fused_linear_cross_entropy(*args, **kwargs)

    module = types.ModuleType("liger_kernel.transformers.functional")
    module.liger_fused_linear_cross_entropy = counted
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(logprobs, "use_liger", lambda hidden, head: True)
    return calls


@pytest.mark.parametrize("biased", [True, False])
def test_liger_is_the_whole_too(inputs, liger, biased):
    head, hidden, tokens = inputs
    bias, leaves = head.bias, [hidden, head.weight, head.bias]
    if not biased:
        head.bias, leaves = None, leaves[:2]
    found, entropy = from_hidden(hidden, tokens, head, TEMPERATURE, entropy=False)
    assert entropy is None and len(liger) == 1
    exact = Categorical(logits=(hidden @ head.weight.T + (bias if biased else 0)) / TEMPERATURE)
    torch.testing.assert_close(found, exact.log_prob(tokens))
    weights = torch.linspace(-1, 2, N)
    pairs = [
        torch.autograd.grad((x * weights).sum(), leaves) for x in (found, exact.log_prob(tokens))
    ]
    for own, other in zip(*pairs, strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-5)


def test_liger_knows_no_entropy(inputs, liger):
    head, hidden, tokens = inputs
    _, entropy = from_hidden(hidden, tokens, head, TEMPERATURE)
    assert entropy is not None and not liger


@pytest.mark.parametrize(("found", "expected"), [(None, False), ("0.8.4", False), ("0.9", True)])
def test_liger_is_asked_for_on_a_gpu_alone(monkeypatch, found, expected):
    def version(name):
        if found is None:
            raise logprobs.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(logprobs, "version", version)
    logprobs.has_liger.cache_clear()
    head, gpu, cpu = torch.nn.Linear(D, V), torch.device("cuda"), torch.device("cpu")
    assert logprobs.use_liger(gpu, head) == expected
    assert not logprobs.use_liger(cpu, head) and not logprobs.use_liger(gpu, torch.nn.Identity())
    logprobs.has_liger.cache_clear()


def test_the_stand_in_has_ligers_signature():
    functional = pytest.importorskip("liger_kernel.transformers.functional")
    real = inspect.signature(functional.liger_fused_linear_cross_entropy).parameters
    stand_in = inspect.signature(liger_fused_linear_cross_entropy).parameters
    assert list(real) == list(stand_in)
    assert [p.default for p in real.values()] == [p.default for p in stand_in.values()]


def tiny_gemma2():
    """A model that caps its logits."""
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=90, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, head_dim=8, final_logit_softcapping=2.0,
        )
    ).eval()  # fmt: skip


@pytest.mark.parametrize("family", [*FAMILIES, "shipped"])
def test_a_model_in_parts(tmp_path, monkeypatch, family):
    """Log-probabilities, entropies and every gradient, from hidden states as from logits."""
    path = SHIPPED_POLICY if family == "shipped" else make_model(tmp_path / family, family)
    model, tokenizer = load_policy(path)
    samples = Sampler.of(model, tokenizer).answer(["1", "some more"], 9)
    found = []
    for at_once in (2**26, 500):
        monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", at_once)
        model.zero_grad()
        chosen, entropy = token_logprobs(model, samples, TEMPERATURE)
        (chosen * samples.mask).sum().backward()
        found.append([chosen, entropy, *(p.grad for p in model.parameters())])
    assert dfpo.rollout.policy._head_is_last(model)
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-4)


def test_a_model_that_caps_its_logits_keeps_them_whole(monkeypatch):
    torch.manual_seed(0)
    model = tiny_gemma2()
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 50)
    samples = dfpo.config.types.Samples(
        torch.arange(10).view(2, 5), torch.ones(2, 5, dtype=torch.int64),
        torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, dtype=torch.bool),
    )  # fmt: skip
    with torch.no_grad():
        found, _ = token_logprobs(model, samples, 1.0)
        exact = Categorical(logits=model(samples.input_ids).logits[:, 1:-1])
    torch.testing.assert_close(found, exact.log_prob(samples.input_ids[:, 2:]))


def test_a_token_that_cannot_come_adds_no_entropy():
    """A vocabulary padded beyond the tokenizer, masked by a bias (trl#7221)."""
    logits = torch.tensor([[0.0, 0.0, float("-inf")], [1.0, float("-inf"), float("-inf")]])
    chosen, entropy = logprobs.from_logits(logits, torch.tensor([1, 0]), 1.0)
    half = torch.tensor(0.5)
    torch.testing.assert_close(chosen, torch.stack([half.log(), torch.tensor(0.0)]))
    torch.testing.assert_close(entropy, torch.stack([-half.log(), torch.tensor(0.0)]))
