"""Numbers about a step, by hand."""

import dataclasses

import pytest
import torch
from small_rollouts import make_rollout

from dfpo.config import build_config
from dfpo.config.types import Estimate, Scored
from dfpo.method.targets import compute_targets
from dfpo.run.diagnostics import (
    count_rewards,
    explained_variance,
    rollout_metrics,
    warn_of_drift,
)

NAN = float("nan")


def test_explained_variance_by_hand():
    observed = torch.tensor([0.0, 0.0, 2.0, 2.0])
    # Variance 1. Residuals 0, -1, 1, 0 about their mean 0: variance 1/2.
    assert explained_variance(torch.tensor([0.0, 1.0, 1.0, 2.0]), observed) == 0.5
    assert explained_variance(observed + 3, observed) == 1.0, "a bias is not its matter"
    assert explained_variance(observed, torch.ones(4)) == 0.0
    nearly = torch.tensor([1.0, 1.0 + 2**-23, 1.0, 1.0])
    assert explained_variance(observed, nearly) == 0.0, "equal but for rounding"
    assert explained_variance(1e30 * observed, 1e30 * observed) == 1.0


def test_rewards_are_counted():
    config = build_config({"reward.low": 0.0, "reward.high": 1.0})
    scored = Scored(
        values=torch.tensor([0.5, 3.0, -1.0, NAN, NAN]),
        parts={"form": torch.tensor([1.0, 0.0, NAN, 0.5, NAN])},
        unscored=1, invalid=1, problem="p", logged={"length": 4.0},
    )  # fmt: skip
    assert count_rewards(scored, config) == {
        "reward/unscored": 1, "reward/invalid": 1, "reward/out_of_range": 2,
        "reward/of/form": 0.5, "reward/log/length": 4.0,
    }  # fmt: skip


def test_metrics_of_a_rollout_by_hand():
    rollout = make_rollout(rewards=(1.0, 0.0, 1.0, 0.0))
    rollout = dataclasses.replace(rollout, clean_rewards=torch.tensor([1.0, 0.0, 0.0, 0.0]))
    rows = [{"domain": d} for d in ("math", "math", "science", "science")]
    answers = dataclasses.replace(rollout.answers, rows=rows)
    rollout = dataclasses.replace(rollout, answers=answers)
    config = build_config({"algorithm": "grpo"})
    targets = compute_targets(rollout, None, config, 0)
    metrics = rollout_metrics(rollout, None, None, targets, "accuracy")
    assert metrics["reward/noisy"] == 0.5 and metrics["reward/clean"] == 0.25
    assert metrics["reward/corrupted"] == 0.25
    assert metrics["response_length"] == (5 + 3 + 1 + 5) / 4
    assert metrics["accuracy/math"] == 0.5 and metrics["accuracy/science"] == 0.0
    # Told 1, 0 | 1, 0 and clean 1, 0 | 0, 0 in two groups. A clean advantage is not positive for
    # the third answer, of one token of 14, where the told one is.
    assert metrics["advantage/sign_agreement"] == pytest.approx(13 / 14)
    assert not [name for name in metrics if name.startswith("value/")]


def said_after(kl, length=20.0):
    config = build_config({"policy.learning_rate": 1e-4})
    return warn_of_drift({"step": 2, "kl": kl, "response_length": length}, config)


def test_a_policy_far_from_its_first_one_is_told():
    assert said_after(9.9) is None
    for word in ("step 2", "17.3 nats", "--policy.kl-coef", "0.001", "--policy.learning-rate"):
        assert word in said_after(17.3)


def test_long_answers_may_be_further():
    """A tenth of a nat a token: 100 of an answer of 1000."""
    assert said_after(99.0, length=1000.0) is None
    assert said_after(101.0, length=1000.0) is not None


def test_steps_without_a_reward_have_no_kl():
    assert said_after(None) is None


def test_correlation_of_values_by_hand():
    """Of answers of 5, 3, 1 and 5 tokens: values 2, 1, 1, 1 against rewards 300, 0, 300, 0. Over 14
    tokens the values' mean is 19/14 and the rewards' 300 * 6/14."""
    rollout = make_rollout(rewards=(300.0, 0.0, 300.0, 0.0))
    quantiles = torch.tensor([2.0, 1.0, 1.0, 1.0]).view(4, 1, 1).expand(4, 5, 3)
    estimate = Estimate(quantiles=quantiles, final=quantiles[:, -1])
    config = build_config({"reward.low": 0.0, "reward.high": 300.0})
    targets = compute_targets(rollout, estimate, config, 0)
    returns = dataclasses.replace(estimate, quantiles=torch.full_like(quantiles, 150.0))
    found = rollout_metrics(rollout, estimate, returns, targets, "reward")
    assert found["value/mean"] == 150.0, "in units of told rewards"
    # In units of one: shares 5/14 of high values, 6/14 of right tokens, both together 5/14.
    covariance = 5 / 14 - 5 / 14 * 6 / 14
    expected = covariance / (5 / 14 * 9 / 14 * 6 / 14 * 8 / 14) ** 0.5
    assert found["value/correlation"] == pytest.approx(expected)

    level = dataclasses.replace(estimate, quantiles=torch.ones_like(quantiles))
    found = rollout_metrics(rollout, level, level, targets, "reward")
    assert found["value/correlation"] == 0.0, "what does not vary tells nothing"
