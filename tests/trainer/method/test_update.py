"""One update: the direction it moves the policy, and what leaves it alone."""

import copy
import dataclasses
import json

import pytest
import torch
from own_loss import OWN_LOSS

from dfpo.config import build_config
from dfpo.config.choices import POLICY_LOSSES
from dfpo.config.noise import Noise
from dfpo.method import policy_losses
from dfpo.method.critics import build_critic, estimate_values
from dfpo.method.critics.partition import build as build_partition
from dfpo.method.targets import compute_targets
from dfpo.method.update import Learner, update
from dfpo.rewards.functions import Reward
from dfpo.rollout import policy as policy_module
from dfpo.rollout.collect import collect
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy, token_logprobs
from dfpo.rollout.sampler import Sampler
from dfpo.run import train as train_module
from dfpo.run.records import MetricsLog, read_metrics
from dfpo.run.train import run_steps, train
from dfpo.tasks import reward
from dfpo.tasks.source import training_rows

CONFIG = build_config(
    {
        "rollout.prompts": 3,
        "rollout.samples": 2,
        "critic.num_quantiles": 8,
        "reward.low": 0,
        "reward.high": 1,
    }
)
VERIFIER = Reward(("verifier",), (reward,), (1.0,))


@pytest.fixture
def parts():
    policy, tokenizer = load_policy(SHIPPED_POLICY)
    critic = build_critic(policy, CONFIG)
    rows = training_rows(0, 0, 3)
    sampler = Sampler.of(policy, tokenizer)
    rollout = collect(sampler, sampler, rows, reward=VERIFIER, noise=Noise(), config=CONFIG, step=0)
    estimate = estimate_values(critic, rollout.samples, torch.Generator().manual_seed(0))
    return policy, critic, rollout, compute_targets(rollout, estimate, CONFIG, 0)


def step(policy, critic, rollout, targets, *, train_policy=True):
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-3, fused=True) for m in (policy, critic)]
    generator = torch.Generator().manual_seed(0)
    learner = Learner(policy, critic, *optimizers, generator)
    return update(learner, rollout, targets, CONFIG, 0, train_policy=train_policy)[0]


def copies(module):
    return [p.detach().clone() for p in module.parameters()]


def same(module, before):
    return all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))


@torch.no_grad()
def answer_logprobs(policy, rollout):
    logprobs, _ = token_logprobs(policy, rollout.samples, 1.0)
    return (logprobs * rollout.samples.mask).sum(-1)


def test_the_policy_moves_towards_what_was_better(parts):
    policy, critic, rollout, targets = parts
    sign = torch.tensor([1.0, -1.0] * 3).unsqueeze(-1)
    targets = dataclasses.replace(targets, advantages=sign * rollout.samples.mask)
    before = answer_logprobs(policy, rollout)
    step(policy, critic, rollout, targets)
    moved = answer_logprobs(policy, rollout) - before
    assert moved[0::2].mean() > 0 > moved[1::2].mean()


def test_the_critic_moves_towards_its_targets(parts):
    policy, critic, rollout, targets = parts
    learned = targets.critic
    ones = torch.ones_like(learned.quantiles)
    learned = dataclasses.replace(learned, quantiles=ones, mean=torch.ones_like(learned.mean))
    high = dataclasses.replace(targets, critic=learned)
    mask, draws = rollout.samples.mask, torch.Generator()
    before = estimate_values(critic, rollout.samples, draws).quantiles[mask].mean()
    step(policy, critic, rollout, high)
    assert estimate_values(critic, rollout.samples, draws).quantiles[mask].mean() > before


def test_warm_up_trains_the_critic_alone(parts):
    policy, critic, rollout, targets = parts
    first, values = copies(policy), copies(critic)
    metrics = step(policy, critic, rollout, targets, train_policy=False)
    assert same(policy, first) and not same(critic, values)
    assert "loss/policy" not in metrics


def test_a_gradient_that_is_not_finite_is_skipped_and_logged(parts, tmp_path):
    policy, critic, rollout, targets = parts
    broken = dataclasses.replace(targets, advantages=targets.advantages * float("nan"))
    first, values = copies(policy), copies(critic)
    metrics = step(policy, critic, rollout, broken)
    assert same(policy, first) and not same(critic, values)
    MetricsLog(tmp_path / "m.jsonl").append(metrics)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    record = json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=refuse)
    assert record["loss/policy"] is None
    assert record["loss/critic"] == metrics["loss/critic"]


def test_parts_of_a_critic_are_clipped_apart(parts):
    """A flow whose gradient is huge leaves the mean's step as it was; clipped together, the mean's
    gradient would be scaled to nothing."""
    policy, critic, rollout, targets = parts
    means = []
    for scale in (1.0, 1e6):
        trained = copy.deepcopy(critic)
        coefs = dataclasses.replace(critic.coefs, anchor=scale)
        trained.coefs = coefs
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, fused=True)
        generator = torch.Generator().manual_seed(0)
        learner = Learner(
            policy, trained, optimizer, optimizer, generator
        )  # fmt: skip
        update(learner, rollout, targets, CONFIG, 0, train_policy=False)
        means.append(trained.head.mean.weight)
    assert torch.equal(*means) and not torch.equal(means[0], critic.head.mean.weight)
    distribution, rest = critic.parts()[1], critic.parts()[0]
    assert len(distribution) + len(rest) == len(list(critic.parameters()))


@pytest.mark.parametrize("loss", ["clip", "trajectory_balance", *OWN_LOSS])
@pytest.mark.parametrize("micro_tokens", [10**6, 60])
def test_an_update_tells_what_a_look_before_it_would_have(parts, monkeypatch, loss, micro_tokens):
    policy, _, rollout, targets = parts
    for name, choice in OWN_LOSS.items():
        monkeypatch.setitem(POLICY_LOSSES, name, choice)
    critic = build_partition(policy, CONFIG)
    config = dataclasses.replace(
        CONFIG, micro_tokens=micro_tokens, policy=dataclasses.replace(CONFIG.policy, loss=loss)
    )
    unseen = dataclasses.replace(rollout, old_logprobs=None, entropy=None)
    outcomes = []
    for given in (rollout, unseen):
        trained, own = copy.deepcopy(policy), copy.deepcopy(critic)
        optimizer = torch.optim.SGD([*trained.parameters(), *own.parameters()], lr=0.1, fused=True)
        learner = Learner(trained, own, optimizer, None, torch.Generator())
        metrics, told = update(learner, given, targets, config, 0, train_policy=True)
        outcomes.append((metrics, told, list(trained.parameters())))

    (metrics, known, weights), (metrics_after, told, weights_after) = outcomes
    assert known is rollout
    torch.testing.assert_close(told.old_logprobs, rollout.old_logprobs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(told.entropy, rollout.entropy, atol=1e-5, rtol=1e-5)
    assert metrics_after == pytest.approx(metrics, abs=1e-5)
    for one, other in zip(weights, weights_after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert not same(policy, weights)


@pytest.mark.parametrize(
    "settings, once",
    [
        ({}, True),
        ({"policy.epochs": 2}, False),
        ({"policy.minibatches": 2}, False),
        ({"target.kl_penalty": 0.01}, False),
    ],
)
def test_what_is_learned_once_is_looked_at_once(monkeypatch, tmp_path, settings, once):
    """The policy's look before its update, where its first one there would not tell the same; the
    reference's; the update's. In the warm-up no update looks."""
    looks = []
    forward = policy_module.token_logprobs

    def counted(model, samples, temperature, *, entropy=True):
        looks.append(torch.is_grad_enabled())
        return forward(model, samples, temperature, entropy=entropy)

    def steps_alone(*arguments):
        looks.clear()
        run_steps(*arguments)

    for module in (policy_module, policy_losses):
        monkeypatch.setattr(module, "token_logprobs", counted)
    monkeypatch.setattr(train_module, "run_steps", steps_alone)
    config = build_config(
        settings | {
            "steps": 2, "critic.warmup_steps": 1, "rollout.prompts": 2, "rollout.samples": 2,
            "eval.prompts": 0, "plots": False, "runs_dir": str(tmp_path), "quiet": True,
        }
    )  # fmt: skip
    run = train(config)
    updates = config.policy.epochs * config.policy.minibatches
    assert looks == [False, False] + [False] * (1 if once else 2) + [True] * updates
    for row in read_metrics(run):
        assert row["entropy"] > 0 and abs(row["kl"]) < 1e-5
