"""Critics on the trunk of a real policy."""

import pytest
import torch
from small_critics import critic_of, generator

from dfpo.config.types import Counts, CriticTargets
from dfpo.method.critics import estimate_values
from dfpo.method.critics.scalar import ScalarCritic


def targets_for(samples, values):
    quantiles = values.expand(*samples.mask.shape, values.shape[-1])
    zeros = torch.zeros(samples.mask.shape)
    return CriticTargets(quantiles=quantiles, spread=zeros)


def test_scalar_critic_starts_at_the_middle(policy, samples):
    critic = critic_of(policy, algorithm="ppo", reward__low=-1.0, reward__high=5.0)
    assert isinstance(critic, ScalarCritic)
    quantiles = estimate_values(critic, samples, generator()).quantiles
    assert quantiles.shape[-1] == 1
    assert (quantiles == 2.0).all()


@pytest.mark.parametrize("algorithm", ["dfpo", "ppo"])
def test_a_constant_return_is_learned(policy, samples, algorithm):
    own = {} if algorithm == "ppo" else {"critic__num_quantiles": 8}
    critic = critic_of(policy, algorithm=algorithm, **own)
    targets = targets_for(samples, torch.full((8 if algorithm == "dfpo" else 1,), 0.8))
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-3)
    draws = generator()
    for _ in range(40):
        prepared = critic.prepare(targets, samples.mask, draws)
        loss, _ = critic.loss(samples, prepared, Counts.of(samples.lengths))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    values = estimate_values(critic, samples, draws).quantiles[samples.mask]
    assert values.mean().item() == pytest.approx(0.8, abs=0.1)
