"""The value-flow critic on the trunk of a real policy."""

import torch
from small_critics import critic_of, generator

from dfpo.method.critics import estimate_values
from dfpo.method.critics.value_flow import ValueFlowCritic


def test_shared_noise_is_shared_along_the_answer(policy, samples):
    critic = critic_of(policy, algorithm="dfpo-paper")
    assert isinstance(critic, ValueFlowCritic)
    found = estimate_values(critic, samples, generator())
    assert torch.equal(found.base[:, 0], found.base[:, -1])
    assert not torch.equal(found.base[0], found.base[1])
    assert found.field is not None


def test_heads_of_one_seed_are_equal(policy):
    first, second = critic_of(policy), critic_of(policy)
    other = critic_of(policy, seed=1)
    assert torch.equal(first.head.z_weight, second.head.z_weight)
    assert not torch.equal(first.head.z_weight, other.head.z_weight)
