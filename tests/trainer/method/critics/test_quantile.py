"""DVPO's critic, by hand."""

import pytest
import torch

from dfpo.config import build_config
from dfpo.config.types import Counts, CriticTargets, Samples
from dfpo.method.critics.quantile import QuantileCritic
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy
from dfpo.run.defaults import complete


@pytest.fixture(scope="module")
def policy():
    return load_policy(SHIPPED_POLICY)[0]


def targets_for(mask, quantiles):
    zeros = torch.zeros(mask.shape)
    return CriticTargets(quantiles=quantiles, spread=zeros)


class Known(QuantileCritic):
    """A quantile critic whose heads say what they are told, in flow units."""

    def __init__(self, policy, told, **settings):
        config = build_config({"algorithm": "dvpo", **settings})
        config = complete(config, policy, torch.tensor([0.0, 1.0]))
        super().__init__(policy.base_model, 0.5, 0.5, config)
        self.told = told

    def quantiles(self, samples):
        return self.told


def test_dvpo_terms_by_hand(policy):
    """Two heads, one answer of one token, two quantiles; range [0, 1], so units are halves."""
    told = torch.tensor([[0.0, 2.0], [1.0, 3.0]]).view(2, 1, 1, 2).expand(2, 1, 2, 2)
    coefs = {"critic.kappa": 0.0, "critic.tail": 0.5, "critic.curvature": 0.0}
    critic = Known(policy, told, **coefs)
    mask = torch.ones(1, 1, dtype=torch.bool)
    samples = Samples(torch.zeros(1, 2), torch.ones(1, 2), mask, torch.zeros(1).bool())
    # Targets 0.5 and 1.5 of return are 0 and 2 in flow units.
    loss, terms = critic.loss(
        samples, targets_for(mask, torch.tensor([[[0.5, 1.5]]])), Counts(1, 1)
    )
    # Pinball at levels 1/4, 3/4, mean over both axes:
    #   head 0, q (0, 2), y (0, 2): q 0: u 0, 2 -> .25 * 2; q 2: u -2, 0 -> .25 * 2: 1 / 4
    #   head 1, q (1, 3), y (0, 2): q 1: u -1, 1 -> .75 + .25; q 3: u -3, -1 -> .25 * 4: 2 / 4
    assert terms["quantile"].item() == pytest.approx((0.25 + 0.5) / 2)
    assert terms["consistency"].item() == pytest.approx(1.0)  # (q_0 - q_1)^2 = 1 everywhere
    # Ensemble (.5, 2.5), tails of one quantile: differences .5 and .5, squared and added.
    assert terms["risk"].item() == pytest.approx(0.5)
    assert terms["mean_shift"].item() == 0.0  # mean y 1 is below mean q 1.5
    assert terms["tail_shape"].item() == 0.0  # a single point has no variance
    expected = 0.375 + 1.0 * 1.0 + 0.1 * 0.5
    assert loss.item() == pytest.approx(expected)


def test_an_ensembles_value_is_its_heads_mean(policy):
    told = torch.tensor([[0.0, 2.0], [1.0, 3.0]]).view(2, 1, 1, 2).expand(2, 1, 2, 2)
    mask = torch.ones(1, 1, dtype=torch.bool)
    samples = Samples(torch.zeros(1, 2), torch.ones(1, 2), mask, torch.zeros(1).bool())
    estimate = Known(policy, told).estimate(samples)
    assert estimate.quantiles.flatten().tolist() == [0.75, 1.75]  # (.5, 2.5) / 2 + .5
