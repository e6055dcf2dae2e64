"""Cases of other projects' own tests, worked out again and run against ours; the table is in
docs/kernels.md. Numbers and equations are facts; none of their code is here."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from dfpo_kernels import distributional_gae, integrate_flow, quantile_huber_loss

# rlax, multistep_test.py, TruncatedGeneralizedAdvantageEstimationTest: two rows, of which the
# second ends in its fourth step; the last value is what follows the last step.
REWARDS = ([0.0, 0.0, 1.0, 0.0, -0.5], [0.0, 0.0, 0.0, 0.0, 1.0])
VALUES = ([1.0, 4.0, -3.0, -2.0, -1.0, -1.0], [-3.0, -2.0, -1.0, 0.0, 5.0, -1.0])
DISCOUNTS = ([0.99] * 5, [0.9, 0.9, 0.9, 0.0, 0.9])
ADVANTAGES = {
    1.0: ([-1.45118, -4.4557, 2.5396, 0.5249, -0.49], [3.0, 2.0, 1.0, 0.0, -4.9]),
    0.7: ([-0.676979, -5.248167, 2.4846, 0.6704, -0.49], [2.2899, 1.73, 1.0, 0.0, -4.9]),
    0.4: ([0.56731, -6.042, 2.3431, 0.815, -0.49], [1.725, 1.46, 1.0, 0.0, -4.9]),
}


def gae_as_a_sum(rewards, values, discounts, lam):
    """A_t = sum over k of delta_{t+k} times the product of lam discount before it."""
    deltas = [r + d * n - v for r, d, v, n in zip(rewards, discounts, values, values[1:])]  # noqa: B905
    return [
        sum(lam**k * math.prod(discounts[t : t + k]) * delta for k, delta in enumerate(deltas[t:]))
        for t in range(len(deltas))
    ]


@pytest.mark.parametrize("num_quantiles", [1, 3])
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("lam", ADVANTAGES)
def test_advantages_of_rlax(lam, row, num_quantiles):
    rewards, values, discounts = REWARDS[row], VALUES[row], DISCOUNTS[row]
    expected = gae_as_a_sum(rewards, values, discounts, lam)
    np.testing.assert_allclose(expected, ADVANTAGES[lam][row], atol=1e-3)
    particles = torch.tensor(values)[None, :, None].expand(1, 6, num_quantiles)
    found, _ = distributional_gae(
        torch.tensor([rewards]), particles[:, :5], torch.ones(1, 5), gamma=max(discounts), lam=lam,
        bootstrap=particles[:, 5], done=torch.tensor([discounts]) == 0,
    )  # fmt: skip
    for particle in found[0].unbind(-1):
        np.testing.assert_allclose(particle, expected, atol=1e-5)


@pytest.mark.parametrize(("kappa", "expected"), [(0.0, 2.0), (2.0, 2.5)])
def test_quantile_loss_of_rlax(kappa, expected):
    """value_learning_test.py, QuantileRegressionLossTest, first row: quantiles -1 and 3 at levels
    .2 and .7, targets -3, 4, 2. Differences -2 5 3, -6 1 -1; Huber 2 8 4, 10 .5 .5; weights .8 .2
    .2, .3 .7 .3: (1.6 + 1.6 + .8 + 3 + .35 + .15) / 3 = 2.5, and without Huber (1.6 + 1 + .6 +
    1.8 + .7 + .3) / 3 = 2. Theirs is not divided by kappa, as ours is (arXiv 1710.10044)."""
    loss = quantile_huber_loss(
        torch.tensor([[-1.0, 3.0]]), torch.tensor([[-3.0, 4.0, 2.0]]),
        taus=torch.tensor([0.2, 0.7]), kappa=kappa, quantile_reduction="sum",
    )  # fmt: skip
    assert loss.item() * (kappa or 1.0) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("reduction", "expected"), [("sum", 2.5), ("mean", 0.25)])
def test_quantile_loss_of_sb3_contrib(reduction, expected):
    """test_utils.py: ten zeros against ten ones. Each pair costs tau H(1) = tau / 2; the levels add
    up to 5 and have the mean 1/2."""
    zeros, ones = torch.zeros(1, 10), torch.ones(1, 10)
    loss = quantile_huber_loss(zeros, ones, kappa=1.0, quantile_reduction=reduction)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_turns_of_verl(seed):
    """test_core_algos_on_cpu.py: two turns with an observation between; what the critic says of
    tokens that the policy did not write changes nothing. At gamma = lam = 1, from the end:
    1 - 9 = -8; .1 + 9 - 7 - 8 = -5.9; .1 + 7 - 6 - 5.9 = -4.8; -3.7; -2.6."""
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0]])
    rewards = torch.tensor([[0.0, 0.0, 0.1, 0.1, 0.1, 0.0, 0.0, 0.1, 1.0, 0.0, 0.0]])
    values = torch.tensor([[0.0, 0.0, 4.0, 5.0, 6.0, 0.0, 0.0, 7.0, 9.0, 0.0, 0.0]])
    anything = 100 * torch.randn(1, 11, generator=torch.Generator().manual_seed(seed))
    values = torch.where(mask.bool(), values, anything).unsqueeze(-1)
    found, returns = distributional_gae(rewards, values, mask, gamma=1.0, lam=1.0)
    expected = torch.tensor([-2.6, -3.7, -4.8, -5.9, -8.0])
    torch.testing.assert_close(found[mask.bool()].squeeze(-1), expected, atol=1e-5, rtol=0)
    written = torch.tensor([4.0, 5.0, 6.0, 7.0, 9.0])
    torch.testing.assert_close(returns[mask.bool()].squeeze(-1), expected + written)


def test_whitening_of_verl():
    """torch_functional.masked_whiten over 1, 2 and 4: mean 7/3, squares 16/9 + 1/9 + 25/9 = 14/3;
    over a sample of three the variance is 7/3, over all of them 14/9."""
    verl = pytest.importorskip("dfpo.integrations.verl")
    targets = pytest.importorskip("dfpo.method.targets")
    numbers, mask = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1, 1, 0, 1]]).bool()
    above = torch.tensor([1.0, 2.0, 4.0]) - 7 / 3
    sample, all_of_them = verl.whiten(numbers.clone(), mask), targets.whiten(numbers, mask)
    torch.testing.assert_close(sample[mask], above / math.sqrt(7 / 3))
    torch.testing.assert_close(all_of_them[mask], above / math.sqrt(14 / 9))


# torchdiffeq, problems.py: equations with their solutions, from t = 1 to 8.


def constant():
    """y' = a + (y - (a t + b))^5 keeps to the line a t + b."""
    return lambda y, t: 0.2 + (y - (0.2 * t + 3.0)) ** 5, lambda t: [0.2 * t + 3.0]


def sine():
    """y' = 2 y / t + t^4 sin 2t - t^2 + 4 t^3. With y = t^2 u it is u' = t^2 sin 2t - 1 + 4 t, so
    u = -t^2 cos(2t) / 2 + t sin(2t) / 2 + cos(2t) / 4 - t + 2 t^2 + c."""

    def velocity(y, t):
        return 2 * y / t + t**4 * torch.sin(2 * t) - t**2 + 4 * t**3

    def solution(t):
        integral = -(t**2) * math.cos(2 * t) / 2 + t * math.sin(2 * t) / 2 + math.cos(2 * t) / 4
        return [t**2 * (integral - t + 2 * t**2 + math.pi - 0.25)]

    return velocity, solution


def linear():
    """y' = A y with A = -A^T: a rotation, exp(A t) y_0."""
    skew = np.random.default_rng(0).standard_normal((10, 10)) * 0.1
    matrix = skew - skew.T
    return (
        lambda y, t: y @ torch.tensor(matrix).T,
        lambda t: (scipy.linalg.expm(matrix * t) @ np.ones(10)).tolist(),
    )


ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


@pytest.mark.parametrize("method", ORDERS)
@pytest.mark.parametrize("problem", [constant, sine, linear])
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_equations_of_torchdiffeq(problem, method, backwards):
    """They arrive, and a step half as long leaves an error that is less by the method's order."""
    velocity, solution = problem()
    start, end = (8.0, 1.0) if backwards else (1.0, 8.0)
    base, expected = (torch.tensor(solution(t), dtype=torch.float64) for t in (start, end))
    given = {"method": method, "start": start, "end": end}
    errors = [
        (integrate_flow(velocity, base, steps=steps, **given) - expected).abs().max().item()
        for steps in (400, 800)
    ]
    scale = max(base.abs().max().item(), expected.abs().max().item())
    if problem is constant:
        assert max(errors) < 1e-9, "every stage lies on the line"
        return
    assert errors[1] < {1: 0.05, 2: 1e-4, 4: 1e-8}[ORDERS[method]] * scale
    if errors[1] > 1e-11 * scale:
        assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[method], abs=0.25)
