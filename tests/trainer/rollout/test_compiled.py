"""Compiled layers: no graph break, one graph for all of them, the numbers of before."""

import pytest
import torch
from tiny_models import FAMILIES, make_model

from dfpo.config.draws import Stream, uniforms
from dfpo.rollout.compiled import as_written, compile_layers, layers_of
from dfpo.rollout.policy import load_policy, token_logprobs
from dfpo.rollout.sampler import Sampler


@pytest.fixture(params=FAMILIES)
def loaded(request, tmp_path):
    torch._dynamo.reset()
    yield load_policy(make_model(tmp_path / request.param, request.param))
    torch._dynamo.reset()


def answers(policy, tokenizer, count=4, limit=7):
    draws = uniforms(0, Stream.SAMPLING, 0, torch.arange(count), limit)
    prompts = ["a", "some words", "more of them", "b"][:count]
    return Sampler.of(policy, tokenizer).answer(prompts, limit, uniforms=draws)


def gradients(policy, samples):
    policy.zero_grad()
    logprobs, _ = token_logprobs(policy, samples, 1.0)
    logprobs[samples.mask].sum().backward()
    return logprobs.detach(), [p.grad.clone() for p in policy.parameters() if p.grad is not None]


def test_log_probabilities_and_gradients_are_those_of_before(loaded):
    policy, tokenizer = loaded
    samples = answers(policy, tokenizer)
    expected, slopes = gradients(policy, samples)
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    assert compile_layers(policy, backend=counting) == policy.config.num_hidden_layers
    logprobs, compiled_slopes = gradients(policy, samples)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)
    for mine, theirs in zip(compiled_slopes, slopes, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    # A break would leave two graphs of the first layer alone.
    assert len(graphs) <= policy.config.num_hidden_layers
    first = len(graphs)
    gradients(policy, answers(policy, tokenizer, count=3, limit=5))
    assert len(graphs) == first, "other lengths and counts make no new graph"


def test_a_layer_has_no_graph_break(loaded):
    policy, tokenizer = loaded
    samples = answers(policy, tokenizer)
    for layer in layers_of(policy):
        layer.compile(fullgraph=True, backend="eager", dynamic=True)
    gradients(policy, samples)  # raises at a break


@pytest.mark.parametrize("loaded", ["llama"], indirect=True)
def test_sampling_runs_layers_as_they_were_written(loaded):
    policy, tokenizer = loaded
    before = answers(policy, tokenizer)

    def forbidden(graph, inputs):
        raise AssertionError("sampling compiled a layer")

    compile_layers(policy, backend=forbidden)
    assert torch.equal(answers(policy, tokenizer).input_ids, before.input_ids)
    with as_written(policy):
        token_logprobs(policy, before, 1.0)
    with pytest.raises(Exception, match="sampling compiled"):
        token_logprobs(policy, before, 1.0)
