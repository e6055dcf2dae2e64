"""A policy's answers."""

import pytest
import torch

from dfpo.config.draws import Stream, uniforms
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy
from dfpo.rollout.sampler import Sampler
from dfpo.rollout.tokens import decode
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


def test_draws_do_not_depend_on_the_batch(policy, prompts):
    """A sample's answer is the same whatever is sampled beside it."""
    u = draw(len(prompts))
    together, _ = decode(policy[1], Sampler.of(*policy).answer(prompts, LENGTH, uniforms=u))
    alone = [
        decode(policy[1], Sampler.of(*policy).answer([prompt], LENGTH, uniforms=u[i : i + 1]))[0][0]
        for i, prompt in enumerate(prompts[:4])
    ]
    assert together[:4] == alone


def test_steps_and_seeds_differ():
    assert not torch.equal(draw(4), draw(4, step=1))
    assert not torch.equal(draw(4), draw(4, seed=1))
    assert torch.equal(draw(4), draw(8)[:4])


def test_mask_ends_with_the_end_token(policy, prompts):
    model, tokenizer = policy
    samples = Sampler.of(model, tokenizer).answer(prompts, LENGTH, uniforms=draw(len(prompts)))
    answers = samples.input_ids[:, -samples.mask.shape[1] :]
    for ids, mask, truncated in zip(answers, samples.mask, samples.truncated, strict=True):
        count = int(mask.sum())
        assert mask[:count].all() and not mask[count:].any()
        assert (ids[:count] == tokenizer.eos_token_id).sum() == (0 if truncated else 1)
        assert truncated or ids[count - 1] == tokenizer.eos_token_id


def test_short_limit_truncates(policy, prompts):
    samples = Sampler.of(*policy).answer(prompts, 3, uniforms=draw(len(prompts)))
    assert samples.truncated.all() and samples.mask.all() and samples.mask.shape[1] == 3
