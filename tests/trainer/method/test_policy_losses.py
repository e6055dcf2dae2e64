"""Policy losses by name: what of a rollout they take, and how their terms are put together."""

import dataclasses
import math

import pytest
import torch
from small_rollouts import make_rollout

from dfpo.config import build_config
from dfpo.config.choices import POLICY_LOSSES
from dfpo.config.types import Counts, Targets
from dfpo.method import policy_losses
from dfpo.method.policy_losses import PolicyBatch


@pytest.fixture
def batch():
    """Answers 3 and 1 of a rollout, of 5 and 3 tokens."""
    rollout = make_rollout()
    numbers = torch.arange(20.0).view(4, 5)
    rollout = dataclasses.replace(rollout, old_logprobs=numbers, ref_logprobs=-numbers)
    targets = Targets(numbers + 100, numbers, numbers, weights=numbers + 200)
    return PolicyBatch.of(rollout, targets, [3, 1], Counts(tokens=16, answers=4))


def test_a_batch_is_the_rows_of_the_rollout(batch):
    assert batch.samples.mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert batch.old_logprobs.tolist() == [[15, 16, 17, 18, 19], [5, 6, 7, 8, 9]]
    assert torch.equal(batch.ref_logprobs, -batch.old_logprobs)
    assert torch.equal(batch.advantages, batch.old_logprobs + 100)
    assert torch.equal(batch.weights, batch.old_logprobs + 200)


def test_the_clipped_loss_and_its_kl_add_up(batch, monkeypatch):
    """Ratios of 1 and advantages of 2: -2 a token. The reference is twice as likely: a k3 of
    2 - 1 - log 2. Eight tokens here are half of the 16 that the means are over."""
    mask = batch.samples.mask
    batch = dataclasses.replace(
        batch,
        advantages=torch.full(mask.shape, 2.0),
        ref_logprobs=batch.old_logprobs + math.log(2),
        weights=None,
    )
    asked = []

    def logprobs(policy, samples, temperature, *, entropy):
        asked.append((policy, temperature))
        return batch.old_logprobs, None

    monkeypatch.setattr(policy_losses, "token_logprobs", logprobs)
    config = build_config({"rollout.temperature": 0.5, "policy.kl_coef": 0.1})
    loss, metrics = POLICY_LOSSES["clip"].load()("the policy", None, batch, config)
    k3 = 1 - math.log(2)
    assert metrics["kl"].item() == pytest.approx(k3 / 2)
    assert loss.item() == pytest.approx((-2 + 0.1 * k3) / 2)
    assert asked == [("the policy", 0.5)]
