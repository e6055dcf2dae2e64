"""The formulas of losses against numbers worked out by hand."""

import math

import pytest
import torch

from dfpo.method.losses import (
    clipped_loss,
    importance_weights,
    kl_loss,
    token_average,
    trajectory_balance_loss,
)

MASK = torch.tensor([[True, True, True, True, False]])


def loss_of(ratios, advantages, dual_clip=3.0):
    logprobs = torch.tensor([[*map(math.log, ratios), 9.0]], requires_grad=True)
    advantages = torch.tensor([[*advantages, 7.0]])
    loss, metrics = clipped_loss(
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
    loss, _ = clipped_loss(
        logprobs, torch.zeros(1, 5), torch.ones(1, 5), MASK, clip=0.2, dual_clip=3.0
    )
    (loss + kl_loss(logprobs, torch.zeros(1, 5), MASK)).backward()
    assert torch.isfinite(logprobs.grad).all()


def test_a_higher_upper_clip():
    # ratio 1.5 at A = 1 counts 1.28, ratio 0.5 at A = -1 counts -min(-.5, -.8) = .8 as before.
    logprobs = torch.tensor([[math.log(1.5), math.log(0.5)]])
    loss, _ = clipped_loss(
        logprobs, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2).bool(),
        clip=0.2, clip_high=0.28, dual_clip=0.0,
    )  # fmt: skip
    assert loss.item() == pytest.approx((-1.28 + 0.8) / 2)


def test_averages_by_hand():
    values = torch.tensor([[1.0, 2.0, 3.0], [8.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    # token: (1 + 2 + 3 + 8) / 4; answer: ((1 + 2 + 3) / 3 + 8) / 2; constant: 14 / (2 * 10)
    found = [token_average(values, mask, how, 10).item() for how in ("token", "answer", "constant")]
    assert found == pytest.approx([3.5, 5.0, 0.7])


def test_the_kl_term_is_averaged_as_the_objective():
    # Answers of 1 and 4 tokens, d = log 2 on the short one alone: k3 = 2 - log 2 - 1.
    ref = torch.tensor([[math.log(2), 0.0, 0.0, 0.0], [0.0] * 4])
    mask = torch.tensor([[True, False, False, False], [True] * 4])
    k3 = 1 - math.log(2)
    for average, share in (("token", 1 / 5), ("answer", 1 / 2), ("constant", 1 / 20)):
        found = kl_loss(torch.zeros(2, 4), ref, mask, average=average, longest=10)
        assert found.item() == pytest.approx(share * k3)


def test_an_answer_without_tokens_counts_nothing():
    values, mask = torch.tensor([[1.0], [float("nan")]]), torch.tensor([[True], [False]])
    found = [token_average(values, mask, how, 10).item() for how in ("token", "answer", "constant")]
    assert found == pytest.approx([1.0, 0.5, 0.05])


def test_trajectory_balance_by_hand():
    # Answer 1: means of log p, log p_ref over 2 tokens: -2, -1; log Z .5; beta 3, A 1/2:
    #   residual = .5 - 2 - 1.5 + 1 = -2;  log p_old mean -2.1: w = e^.1 = 1.10517
    # Answer 2: one token, log p = log p_ref = log p_old = -1, log Z .5, A -1/2:
    #   residual = .5 - 1 + 1.5 + 1 = 2;   w = 1
    mask = torch.tensor([[True, True], [True, False]])
    logprobs = torch.tensor([[-1.0, -3.0], [-1.0, 5.0]], requires_grad=True)
    log_z = torch.tensor([0.5, 0.5], requires_grad=True)
    loss, metrics = trajectory_balance_loss(
        logprobs, torch.tensor([[-1.2, -3.0], [-1.0, 7.0]]),
        torch.tensor([[-1.0, -1.0], [-1.0, 9.0]]),
        torch.tensor([[0.5, 0.5], [-0.5, 0.0]]), log_z, mask, beta=3.0, clip=0.2, clip_high=0.28,
    )  # fmt: skip
    weight = math.exp(0.1)
    assert loss.item() == pytest.approx((weight * 4 + 4) / 2, rel=1e-5)
    loss.backward()
    # d/dlogZ = w 2 residual / 2 answers; a token has 1/|y| of it; w has no gradient.
    assert log_z.grad.tolist() == pytest.approx([-2 * weight, 2.0], rel=1e-5)
    assert logprobs.grad.flatten().tolist() == pytest.approx([-weight, -weight, 2.0, 0.0], rel=1e-5)
    assert metrics["log_partition"].item() == pytest.approx(0.5)


def test_the_importance_weight_is_clipped():
    # ratio e^1 above 1.28, residual = 0 - 1 - 0 + 2 = 1: loss 1.28; ratio e^-1 below .8: .8.
    def loss(old):
        one = torch.ones(1, 1)
        return trajectory_balance_loss(
            -one, old * one, -2 * one, 0 * one, torch.zeros(1), one.bool(), beta=15.0, clip=0.2,
            clip_high=0.28,
        )[0].item()  # fmt: skip

    assert [loss(-2.0), loss(0.0)] == pytest.approx([1.28, 0.8])


def test_importance_weights_by_hand():
    # Trainer over engine: 1/2, 1, 2, 8 and a token that does not count; bound 3.
    trainer = torch.tensor([[0.5, 1.0, 2.0, 8.0, 1.0]]).log() - 3
    engine = torch.tensor([[-3.0, -3.0, -3.0, -3.0, 4.0]])
    weights, metrics = importance_weights(trainer, engine, MASK, 3.0)
    assert weights[0].tolist() == pytest.approx([0.5, 1.0, 2.0, 3.0, 1.0])
    assert metrics["weight"].item() == pytest.approx(6.5 / 4)
    assert metrics["truncated"].item() == 0.25
    # k3 = r - 1 - log r, and the logarithms of 1/2, 1, 2 and 8 sum to 3 log 2.
    assert metrics["kl"].item() == pytest.approx((11.5 - 4 - 3 * math.log(2)) / 4)


def test_weights_multiply_each_tokens_loss():
    logprobs = torch.zeros(1, 5, requires_grad=True)
    advantages, weights = torch.ones(1, 5), torch.tensor([[0.5, 1.0, 2.0, 3.0, 9.0]])
    loss, _ = clipped_loss(
        logprobs, torch.zeros(1, 5), advantages, MASK, clip=0.2, dual_clip=3.0, weights=weights
    )
    loss.backward()
    assert loss.item() == pytest.approx(-6.5 / 4)
    assert logprobs.grad[0].tolist() == pytest.approx([-0.125, -0.25, -0.5, -0.75, 0.0])
