"""What the tests of several critics begin with."""

import pytest
import torch

from dfpo.config.draws import Stream, uniforms
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy
from dfpo.rollout.sampler import Sampler
from dfpo.tasks.source import training_rows


@pytest.fixture(scope="module")
def policy():
    return load_policy(SHIPPED_POLICY)


@pytest.fixture(scope="module")
def samples(policy):
    prompts = [row["prompt"] for row in training_rows(0, 0, 6)]
    draws = uniforms(0, Stream.SAMPLING, 0, torch.arange(6), 64)
    return Sampler.of(*policy).answer(prompts, 64, uniforms=draws)
