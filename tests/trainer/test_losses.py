"""Policy losses against numbers worked out by hand."""

import math

import pytest
import torch

from dfpo.losses import kl_loss, ppo_clip_loss

MASK = torch.tensor([[True, True, True, True, False]])


def loss_of(ratios, advantages, dual_clip=3.0):
    logprobs = torch.tensor([[*map(math.log, ratios), 9.0]], requires_grad=True)
    advantages = torch.tensor([[*advantages, 7.0]])
    loss, metrics = ppo_clip_loss(
        logprobs, torch.zeros(1, 5), advantages, MASK, clip=0.2, dual_clip=dual_clip
    )
    loss.backward()
    return loss.item(), logprobs.grad[0], metrics


def test_ppo_clip_by_hand():
    # ratio, A: 1.5, 1 -> -min(1.5, 1.2) = -1.2;   0.5, 1 -> -0.5;
    #           1.5, -1 -> -min(-1.5, -1.2) = 1.5;  0.5, -1 -> -min(-.5, -.8) = 0.8
    loss, grad, metrics = loss_of([1.5, 0.5, 1.5, 0.5], [1.0, 1.0, -1.0, -1.0])
    assert loss == pytest.approx((-1.2 - 0.5 + 1.5 + 0.8) / 4)
    # d(-ratio A)/d logp = -ratio A where the ratio counts, 0 where it is clipped; mean of 4.
    assert grad.tolist() == pytest.approx([0.0, -0.125, 0.375, 0.0, 0.0])
    assert metrics["clip_fraction"].item() == 1.0
    assert metrics["ratio_max"].item() == pytest.approx(1.5)


def test_dual_clip_bounds_the_loss():
    # ratio 5, A -1: plain loss 5, bounded by 3; gradient there 0.
    loss, grad, _ = loss_of([5.0, 1.0, 1.0, 1.0], [-1.0, 0.0, 0.0, 0.0])
    assert loss == pytest.approx(3 / 4)
    assert grad[0].item() == 0.0
    assert loss_of([5.0, 1.0, 1.0, 1.0], [-1.0, 0.0, 0.0, 0.0], dual_clip=0.0)[0] == (
        pytest.approx(5 / 4)
    )


def test_kl_by_hand():
    # d = logp_ref - logp = ln 2: k3 = 2 - ln 2 - 1; d = 0: 0. Two tokens of four.
    logprobs = torch.tensor([[0.0, 0.0, 0.0, 0.0, 5.0]])
    ref = torch.tensor([[math.log(2), math.log(2), 0.0, 0.0, -90.0]])
    assert kl_loss(logprobs, ref, MASK).item() == pytest.approx((1 - math.log(2)) / 2)


def test_wild_ratios_stay_finite():
    logprobs = torch.tensor([[500.0, -500.0, 0.0, 0.0, 0.0]], requires_grad=True)
    loss, _ = ppo_clip_loss(
        logprobs, torch.zeros(1, 5), torch.ones(1, 5), MASK, clip=0.2, dual_clip=3.0
    )
    (loss + kl_loss(logprobs, torch.zeros(1, 5), MASK)).backward()
    assert torch.isfinite(logprobs.grad).all()
