"""The classifying critic: its targets by hand and by scipy, its value, and what it learns."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from small_rollouts import make_rollout

from dfpo.config import build_config
from dfpo.config.types import Counts, CriticTargets
from dfpo.method.critics import build_critic
from dfpo.method.critics.categorical import smoothed
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy
from dfpo.run.defaults import complete


@pytest.fixture(scope="module")
def critic():
    policy = load_policy(SHIPPED_POLICY)[0]
    settings = {"algorithm": "ppo-hl-gauss", "reward.low": -1, "reward.high": 3}
    return build_critic(policy, complete(build_config(settings), policy, torch.zeros(1)))


def samples():
    rollout = make_rollout().samples
    ids = torch.arange(rollout.attention_mask.numel()).view_as(rollout.attention_mask) % 20
    return dataclasses.replace(rollout, input_ids=ids, attention_mask=rollout.attention_mask.long())


def test_smoothed_targets_are_shares_of_a_normal_distribution():
    edges = torch.linspace(-1, 1, 11)
    found = smoothed(torch.tensor([0.13, 1.0, 7.0]), edges, 0.15)
    for row, centre in zip(found, (0.13, 1.0, 1.0), strict=True):
        shares = np.diff(stats.norm.cdf(edges.numpy(), centre, 0.15))
        np.testing.assert_allclose(row.numpy(), shares / shares.sum(), atol=1e-6)


def test_it_starts_in_the_middle_and_learns_the_mean_of_its_targets(critic):
    given = samples()
    assert critic.estimate(given).quantiles[given.mask].flatten().tolist() == pytest.approx(
        [1.0] * 14
    )
    # Targets of a token are 3 in one half of its visits and 0 in the other: 1.5.
    counts = Counts.of(given.lengths)
    optimizer = torch.optim.Adam(critic.head.parameters(), lr=0.1)
    for step in range(200):
        told = torch.full((4, 5, 1), 3.0 * (step % 2))
        loss, terms = critic.loss(given, CriticTargets(told), counts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 200)
    values = critic.estimate(given).quantiles[given.mask]
    assert (values - 1.5).abs().max() < 0.1
    assert set(terms) == {"cross_entropy"}


def test_loss_by_hand(critic):
    """Uniform bins: the cross-entropy is log 51 whatever the target."""
    torch.nn.init.zeros_(critic.head.weight)
    torch.nn.init.zeros_(critic.head.bias)
    given = samples()
    loss, _ = critic.loss(given, CriticTargets(torch.rand(4, 5, 1)), Counts.of(given.lengths))
    assert loss.item() == pytest.approx(np.log(51), rel=1e-5)
