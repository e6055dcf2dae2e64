"""PPO's critic, with one head or several."""

import pytest
import torch

from dfpo.config import build_config
from dfpo.config.types import Counts, CriticTargets, Samples
from dfpo.method.critics import build_critic
from dfpo.method.critics.scalar import ScalarCritic
from dfpo.method.critics.trunk import after_last
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy
from dfpo.run.defaults import complete


@pytest.fixture(scope="module")
def policy():
    return load_policy(SHIPPED_POLICY)[0]


def critic_of(policy, **settings):
    config = build_config({k.replace("__", "."): v for k, v in settings.items()})
    return build_critic(policy, complete(config, policy, torch.tensor([0.0, 1.0])))


def targets_for(mask, quantiles):
    zeros = torch.zeros(mask.shape)
    return CriticTargets(quantiles=quantiles, spread=zeros)


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


def test_the_least_of_several_heads_is_the_value(policy):
    critic = critic_of(policy, algorithm="robust-ppo")
    assert isinstance(critic, ScalarCritic)
    samples = some_samples(policy)
    values = critic.values(samples)
    assert values.shape[-1] == 4 and len(values[0, 0].unique()) == 4
    least = torch.tensor([min(row.tolist()) for row in values[0, :-1]])
    found = critic.estimate(samples)
    torch.testing.assert_close(found.quantiles[0, :, 0], least * 0.5 + 0.5)
    # Each head has the same targets: 0.5 (v_k - y)^2, a mean over heads and tokens.
    loss, _ = critic.loss(samples, targets_for(samples.mask, torch.ones(1, 5, 1)), Counts(5, 1))
    by_hand = sum(0.5 * (v - 1.0) ** 2 for row in values[0, :-1].tolist() for v in row) / 20
    assert loss.item() == pytest.approx(by_hand, rel=1e-4)


def test_ridge_control_has_the_flow_heads_conditioner(policy):
    plain = critic_of(policy, algorithm="ppo")
    ridge = critic_of(policy, algorithm="ppo-ridge")
    flow = critic_of(policy, algorithm="dfpo")

    def shapes(module):
        return {k: v.shape for k, v in module.state_dict().items()}

    assert shapes(ridge.head[0]) == shapes(flow.head.conditioner)
    assert shapes(plain.head) == {"weight": (1, 64), "bias": (1,)}
    assert (ridge.estimate(some_samples(policy)).quantiles == 0.5).all()


def test_the_value_after_an_answer_is_that_of_its_last_token():
    """Answers of 2 and 0 of 2 tokens: an answer shorter than the longest may be truncated too."""
    values = torch.arange(6.0).view(2, 3, 1)
    mask = torch.tensor([[True, False], [False, False]])  # the second is a tool's
    kept = torch.tensor([[1, 1, 1], [1, 0, 0]])
    samples = Samples(torch.zeros(2, 3), kept, mask, torch.ones(2).bool())
    assert after_last(values, samples).tolist() == [[2.0], [3.0]]
