"""Rows that have ended leave the batch, and no answer is another for it."""

import functools

import pytest
import torch
from cached_models import MODELS
from transformers import AutoModelForCausalLM

from dfpo.rollout.engines import hf_generate
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy
from dfpo.rollout.sampler import Sampler


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("sampled", [True, False])
def test_answers_are_those_of_the_whole_batch(monkeypatch, name, sampled):
    _, tokenizer = load_policy(SHIPPED_POLICY)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name]).eval()
    model.generation_config.eos_token_id = [7, 11, 20, 33, 41]
    prompts = [list(range(5, 8 + i % 7)) for i in range(24)]
    draws = torch.rand(24, 40, generator=torch.Generator().manual_seed(1)) if sampled else None
    sampler = Sampler.of(model, tokenizer)
    whole = sampler.continue_from(prompts, 40, uniforms=draws)
    if sampled:
        assert len(set(whole.lengths)) > 5

    monkeypatch.setattr(hf_generate, "SMALL_MODEL", 0)
    sizes = []
    forward = type(model).forward

    @functools.wraps(forward)  # transformers looks which arguments it takes
    def watched(self, *arguments, **options):
        sizes.append(len(options["input_ids"]))
        return forward(self, *arguments, **options)

    monkeypatch.setattr(type(model), "forward", watched)
    left = sampler.continue_from(prompts, 40, uniforms=draws)
    assert torch.equal(left.input_ids, whole.input_ids)
    assert torch.equal(left.mask, whole.mask)
    if sampled:
        assert min(sizes) < 12, "half of them have left"
        # Rows go once a quarter of a batch has ended: work follows the tokens that are sampled.
        assert sum(sizes) < 1.6 * sum(whole.lengths)
