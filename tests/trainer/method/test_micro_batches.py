"""A minibatch in parts is the minibatch at once, whatever the algorithm; and how it is parted."""

import dataclasses

import pytest
import torch

from dfpo.config import ALGORITHMS, build_config
from dfpo.config.noise import Noise
from dfpo.config.rules import only_read
from dfpo.method.critics import estimate_values
from dfpo.method.targets import compute_targets
from dfpo.method.update import minibatches, update
from dfpo.rewards.functions import Reward
from dfpo.rollout.adapters import root_of
from dfpo.rollout.collect import collect
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy
from dfpo.rollout.sampler import Sampler
from dfpo.run.setup import set_up
from dfpo.tasks.source import training_rows

SMALL = {
    "rollout.prompts": 5, "rollout.samples": 3, "critic.num_quantiles": 8, "eval.prompts": 0,
    "reward.low": 0, "reward.high": 1, "device": "cpu", "policy.minibatches": 2,
    "policy.kl_coef": 0.1,
}  # fmt: skip


@pytest.fixture(scope="module")
def rolled():
    """Answers of unlike lengths with unlike rewards, where the policy has left its reference."""
    sampler = Sampler.of(*load_policy(SHIPPED_POLICY))
    config = build_config({k: v for k, v in SMALL.items()})

    def by_length(completions, **columns):
        return [len(text) % 7 / 7 for text in completions]

    verifier = Reward(("verifier",), (by_length,), (1.0,))
    rollout = collect(
        sampler, sampler, training_rows(0, 0, 5),
        reward=verifier, noise=Noise(), config=config, step=0,
    )  # fmt: skip
    assert len(set(rollout.answers.lengths)) > 3
    draws = torch.Generator().manual_seed(3)
    noise = 0.3 * torch.randn(rollout.old_logprobs.shape, generator=draws)
    return dataclasses.replace(
        rollout,
        old_logprobs=(rollout.old_logprobs + noise).double(),
        ref_logprobs=(rollout.ref_logprobs - noise).double(),
        rewards=rollout.rewards.double(),
        clean_rewards=rollout.rewards.double(),
    )


def learned(tmp_path, rolled, algorithm, micro_tokens, dtype, **more):
    """Metrics and weights after one update by plain gradient descent, which hides nothing."""
    own = {"algorithm": algorithm, "runs_dir": str(tmp_path)}
    settings = only_read(SMALL, own) | own | {"micro_tokens": micro_tokens} | more
    setup = set_up(build_config(settings), None)
    root_of(setup.policy).to(dtype), setup.critic.to(dtype)
    rollout = dataclasses.replace(
        rolled,
        **{
            name: getattr(rolled, name).to(dtype)
            for name in ("old_logprobs", "ref_logprobs", "rewards", "clean_rewards")
        },
    )
    estimate = estimate_values(setup.critic, rollout.samples, setup.generator, micro_tokens)
    targets = compute_targets(rollout, estimate, setup.config, 0)
    models = [m for m in (setup.policy, setup.critic) if list(m.parameters())]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, fused=True) for m in models]
    own = setup.critic_optimizer is not None
    learner = dataclasses.replace(
        setup.learner,
        policy_optimizer=optimizers[0],
        critic_optimizer=optimizers[1] if own else None,
    )
    metrics, _ = update(learner, rollout, targets, setup.config, 0, train_policy=True)
    return metrics, [p.detach() for m in models for p in m.parameters()]


def first_of_each_update():
    """Every algorithm; those that differ from one before in their rewards or advantages alone,
    which are there before an update begins, take long for what they may show."""
    updates = []
    for name in ALGORITHMS:
        config = build_config({"algorithm": name})
        update = config.critic, config.policy, config.coef
        yield pytest.param(name, marks=[pytest.mark.long] * (update in updates))
        updates.append(update)


# float64 notices more.
@pytest.mark.parametrize(
    "dtype, error",
    [(torch.float64, 1e-10), pytest.param(torch.float32, 1e-5, marks=pytest.mark.long)],
)
@pytest.mark.parametrize("algorithm", first_of_each_update())
def test_parts_add_up(tmp_path, rolled, algorithm, dtype, error):
    whole, weights = learned(tmp_path, rolled, algorithm, 10**6, dtype)
    parts, again = learned(tmp_path, rolled, algorithm, 100, dtype)
    assert parts == pytest.approx(whole, rel=1e-4, abs=1e-5)  # metrics leave as float32
    moved = 0.0
    first = [p.detach() for p in load_policy(SHIPPED_POLICY)[0].parameters()]
    for i, (a, b) in enumerate(zip(weights, again, strict=True)):
        torch.testing.assert_close(a, b, atol=error, rtol=error)
        if i < len(first):
            moved += float((a - first[i]).abs().sum())
    assert moved > 1e-3


@pytest.mark.parametrize("lora", [0, 2])
def test_computing_layers_again_changes_nothing(tmp_path, rolled, lora):
    """And it does so: fewer numbers are kept for backward."""
    kept = []

    def run(**more):
        sizes = 0

        def pack(tensor):
            nonlocal sizes
            sizes += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            found = learned(tmp_path, rolled, "dfpo", 10**6, torch.float64, **more)
        kept.append(sizes)
        return found

    settings = {"lora.rank": lora}
    plain, weights = run(**settings)
    again, others = run(**settings, gradient_checkpointing=True)
    assert again == pytest.approx(plain, rel=1e-6, abs=1e-9)
    for a, b in zip(weights, others, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)
    assert kept[1] < 0.7 * kept[0], kept


@pytest.mark.parametrize("answers, count, sizes", [(16, 9, 9), (10, 4, 4), (3, 8, 3), (6, 1, 1)])
def test_as_many_minibatches_as_asked(answers, count, sizes):
    config = build_config({"policy.minibatches": count})
    found = list(minibatches(answers, config, step=3, epoch=0))
    assert len(found) == sizes
    assert sorted(sum(found, [])) == list(range(answers))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert found != list(minibatches(answers, config, step=4, epoch=0)) or answers < 4
