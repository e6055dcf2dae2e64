"""Risk measures against integrals and closed forms."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from small_rollouts import make_estimate, make_rollout

from dfpo.config import build_config
from dfpo.config.risk import parse_risk
from dfpo.method.risk import risk_value, risk_weights
from dfpo.method.targets import compute_targets

MEASURES = ["neutral", "cvar-lower", "cvar-lower=0.1", "cvar-upper=0.3", "wang", "wang=-0.5"]


@pytest.mark.parametrize("text", MEASURES)
@pytest.mark.parametrize("count", [1, 7, 64])
def test_weights_are_a_law(text, count):
    weights = risk_weights(parse_risk(text), count)
    assert weights.shape == (count,) and (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)


def test_weights_by_hand():
    # The lowest .3 of 8 quantiles: 2.4 of them, so 1/2.4, 1/2.4 and .4/2.4.
    lower = risk_weights(parse_risk("cvar-lower=0.3"), 8)
    torch.testing.assert_close(lower[:4], torch.tensor([1, 1, 0.4, 0]) / 2.4)
    assert lower[3:].abs().max() == 0
    upper = risk_weights(parse_risk("cvar-upper=0.3"), 8)
    torch.testing.assert_close(upper, lower.flip(0))
    # Phi(Phi^-1(.5) + .75) = .77337
    halves = risk_weights(parse_risk("wang=0.75"), 2)
    torch.testing.assert_close(halves, torch.tensor([0.77337, 0.22663]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("text", MEASURES)
def test_values_of_a_skewed_law(text):
    """Against the integral of the quantile function of an exponential distribution."""
    risk = parse_risk(text)
    taus = (np.arange(4000) + 0.5) / 4000
    found = risk_value(torch.from_numpy(stats.expon.ppf(taus)), risk).item()
    p = risk.parameter
    if risk.kind == "neutral":
        expected = 1.0
    elif risk.kind == "cvar-lower":
        expected = integrate.quad(stats.expon.ppf, 0, p)[0] / p
    elif risk.kind == "cvar-upper":
        expected = 1 - np.log(p)  # mean beyond the quantile: memoryless
    else:
        # E_g[Z], the distortion being dg(tau) = phi(x + p) dx with x = Phi^-1(tau)
        expected = integrate.quad(
            lambda x: stats.expon.ppf(stats.norm.cdf(x)) * stats.norm.pdf(x + p), -9, 7.5
        )[0]
    assert found == pytest.approx(expected, rel=2e-3)


def test_order_of_quantiles_does_not_matter():
    values = torch.rand(3, 9, generator=torch.Generator().manual_seed(0))
    for text in MEASURES:
        risk = parse_risk(text)
        torch.testing.assert_close(risk_value(values.flip(-1), risk), risk_value(values, risk))


MEAN = {"algorithm": "dfpo-mean", "target.gamma": 0.9, "target.lam": 0.7}


@pytest.mark.parametrize("text", ["cvar-lower=0.25", "wang=1"])
def test_advantage_is_gae_of_the_risk_value(text):
    """delta_t = r_t + gamma rho(Z_{t+1}) - rho(Z_t), summed with the trace, by a plain loop."""
    config = build_config(MEAN | {"risk": text})
    rollout, estimate = make_rollout(), make_estimate()
    found = compute_targets(rollout, estimate, config, 0)
    neutral = compute_targets(rollout, estimate, build_config(MEAN), 0)
    assert torch.equal(found.critic.quantiles, neutral.critic.quantiles), (
        "the critic's targets are as they were"
    )
    values = risk_value(estimate.quantiles, parse_risk(text)).double()
    for b, kept in enumerate(rollout.samples.mask):
        length, trace, ahead = int(kept.sum()), 0.0, 0.0
        for t in reversed(range(length)):
            reward = float(rollout.rewards[b]) if t == length - 1 else 0.0
            delta = reward + 0.9 * ahead - float(values[b, t])
            trace = delta + 0.9 * 0.7 * trace
            ahead = float(values[b, t])
            assert found.raw_advantages[b, t].item() == pytest.approx(trace, abs=1e-5)
