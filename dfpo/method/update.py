"""Minibatches, backward, clip, step: one rollout's update of critic and policy."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from dfpo.config import Config
from dfpo.config.choices import POLICY_LOSSES
from dfpo.config.types import Rollout, Targets
from dfpo.method.critics import Critic
from dfpo.method.policy_losses import PolicyBatch


@dataclass(frozen=True)
class Learner:
    """What an update changes."""

    accelerator: Accelerator
    policy: PreTrainedModel
    critic: Critic
    policy_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer | None  # None: the critic has nothing of its own
    generator: torch.Generator


def update(
    learner: Learner, rollout: Rollout, targets: Targets, config: Config, *, train_policy: bool
) -> dict[str, float]:
    """Passes over the rollout in shuffled minibatches; returns the mean of each metric. A critic
    without an optimiser of its own is not trained, or with the policy."""
    sums: dict[str, list[Tensor]] = defaultdict(list)
    generator, count = learner.generator, len(rollout.answers)
    longest = sorted(rollout.answers.lengths, reverse=True)
    epochs = config.policy.epochs if train_policy else config.critic.warmup_epochs

    for _ in range(epochs):
        order = torch.randperm(count, generator=generator, device=generator.device)
        for rows in order.chunk(config.policy.minibatches):
            metrics: dict[str, Tensor] = {}
            if learner.critic_optimizer is not None:
                most_tokens = sum(longest[: len(rows)])
                metrics |= _train_critic(learner, rollout, targets, rows, most_tokens, config)
            if train_policy:
                metrics |= _train_policy(learner, PolicyBatch.of(rollout, targets, rows), config)
            for name, value in metrics.items():
                sums[name].append(value.detach())

    if not sums:
        return {}
    # One wait for the device, not one per metric.
    means = torch.stack([torch.stack(values).mean().float() for values in sums.values()])
    return dict(zip(sums, means.tolist(), strict=True))


def _train_critic(
    learner: Learner,
    rollout: Rollout,
    targets: Targets,
    rows: Tensor,
    most_tokens: int,
    config: Config,
) -> dict[str, Tensor]:
    critic = learner.critic
    samples, learned = rollout.samples.select(rows), targets.critic.select(rows)
    loss, terms = critic.loss(samples, learned, learner.generator, most_tokens)

    norm = _step(learner.accelerator, learner.critic_optimizer, loss, critic.parts(), config)
    named = {f"critic/{name}": term for name, term in terms.items()}
    return {"loss/critic": loss, "grad_norm/critic": norm, **named}


def _train_policy(learner: Learner, batch: PolicyBatch, config: Config) -> dict[str, Tensor]:
    optimizer = learner.policy_optimizer
    policy_loss = POLICY_LOSSES[config.policy.loss].load()
    loss, metrics = policy_loss(learner.policy, learner.critic, batch, config)

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = _step(learner.accelerator, optimizer, loss, [parameters], config)
    named = {f"policy/{name}": value for name, value in metrics.items()}
    return {"loss/policy": loss, "grad_norm/policy": norm, **named}


def _step(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    parts: list[list[nn.Parameter]],
    config: Config,
) -> Tensor:
    """One clipped optimiser step, left out where the gradient is not finite. Returns its norm,
    over all parts, each of which is clipped by its own."""
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    clip = config.max_grad_norm
    norms = [accelerator.clip_grad_norm_(part, clip) for part in parts]
    norm = torch.stack(norms).norm()

    # The fused optimiser reads the flag on the device, where asking for it here would wait.
    fused = getattr(optimizer, "optimizer", optimizer)
    fused.grad_scale, fused.found_inf = None, (~torch.isfinite(norm)).float()
    optimizer.step()
    return norm
