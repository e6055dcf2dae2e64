"""log Z of a prompt."""

import dataclasses

import pytest
import torch

from dfpo.config import build_config
from dfpo.config.types import Samples
from dfpo.method.critics import build_critic
from dfpo.method.critics.partition import LogPartition
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy, token_logprobs
from dfpo.run.defaults import complete
from dfpo.run.setup import build_optimizers


@pytest.fixture(scope="module")
def policy():
    return load_policy(SHIPPED_POLICY)[0]


def critic_of(policy, **settings):
    config = build_config({k.replace("__", "."): v for k, v in settings.items()})
    return build_critic(policy, complete(config, policy, torch.tensor([0.0, 1.0])))


def some_samples(policy, prompt=6, answer=5, padding=0):
    """Two equal rows of tokens, the second with padding on both sides."""
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 60, (1, prompt + answer), generator=draws)
    left, right = torch.zeros(1, padding, dtype=torch.int64), torch.zeros(1, padding).long()
    ids = torch.cat([left, ids, right], 1)
    kept = torch.zeros(1, ids.shape[1], dtype=torch.int64)
    kept[:, padding : padding + prompt + answer] = 1
    mask = torch.cat([torch.ones(1, answer), torch.zeros(1, padding)], 1).bool()
    return Samples(ids, kept, mask, torch.zeros(1).bool())


def test_log_partition_sees_the_prompt_alone(policy):
    critic = critic_of(policy, algorithm="flowrl")
    assert isinstance(critic, LogPartition)

    def found(samples):
        with critic.watch(policy) as hidden:
            token_logprobs(policy, samples, 1.0)
        return critic.log_partition(hidden[0], samples)

    samples = some_samples(policy)
    changed = samples.input_ids.clone()
    changed[:, -2] = (changed[:, -2] + 1) % 60
    plain = found(samples)
    torch.testing.assert_close(found(dataclasses.replace(samples, input_ids=changed)), plain)
    torch.testing.assert_close(found(some_samples(policy, padding=3)), plain)
    changed[:, 2] = (changed[:, 2] + 1) % 60
    assert (found(dataclasses.replace(samples, input_ids=changed)) - plain).abs() > 1e-4


def test_log_partition_learns_with_the_policy(policy):
    critic = critic_of(policy, algorithm="flowrl")
    config = complete(build_config({"algorithm": "flowrl"}), policy, torch.tensor([0.0]))
    optimizer, own = build_optimizers(policy, critic, config)
    assert own is None
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in (*policy.parameters(), *critic.parameters())}
    with critic.watch(policy) as hidden:
        token_logprobs(policy, some_samples(policy), 1.0)
    critic.log_partition(hidden[0], some_samples(policy)).sum().backward()
    assert policy.get_input_embeddings().weight.grad.abs().sum() > 0
    policy.zero_grad()
