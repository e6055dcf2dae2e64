"""Minibatches, backward, clip, step: one rollout's update of critic and policy."""

from __future__ import annotations

from collections import defaultdict

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from dfpo.config import Config
from dfpo.critic import Critic
from dfpo.losses import kl_loss, ppo_clip_loss
from dfpo.policy import Samples, token_logprobs
from dfpo.rollout import Rollout
from dfpo.targets import Targets


def update(
    accelerator: Accelerator,
    policy: PreTrainedModel,
    critic: Critic,
    policy_optimizer: torch.optim.Optimizer,
    critic_optimizer: torch.optim.Optimizer,
    rollout: Rollout,
    targets: Targets,
    config: Config,
    generator: torch.Generator,
    *,
    train_policy: bool,
) -> dict[str, float]:
    """Passes over the rollout in shuffled minibatches; returns the mean of each metric."""
    sums: dict[str, list[Tensor]] = defaultdict(list)
    count = rollout.samples.mask.shape[0]
    epochs = config.policy.epochs if train_policy else config.critic.warmup_epochs
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator, device=generator.device)
        for rows in order.chunk(config.policy.minibatches):
            samples = Samples(*(x[rows] for x in rollout.samples))
            batch = targets.select(rows)

            loss, terms = critic.loss(samples, batch, generator)
            norm = _step(accelerator, critic, critic_optimizer, loss, config)
            found = {"loss/critic": loss, "grad_norm/critic": norm}
            found |= {f"critic/{name}": term for name, term in terms.items()}

            if train_policy:
                logprobs, _ = token_logprobs(policy, samples, config.rollout.temperature)
                loss, metrics = ppo_clip_loss(
                    logprobs, rollout.old_logprobs[rows], batch.advantages, samples.mask,
                    clip=config.policy.clip, dual_clip=config.policy.dual_clip,
                )  # fmt: skip
                kl = kl_loss(logprobs, rollout.ref_logprobs[rows], samples.mask)
                total = loss + config.policy.kl_coef * kl
                norm = _step(accelerator, policy, policy_optimizer, total, config)
                found |= {"loss/policy": loss, "grad_norm/policy": norm}
                found |= {f"policy/{name}": value for name, value in metrics.items()}
            for name, value in found.items():
                sums[name].append(value.detach())
    # One wait for the device, not one per metric.
    means = torch.stack([torch.stack(values).mean().float() for values in sums.values()])
    return dict(zip(sums, means.tolist(), strict=True))


def _step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    config: Config,
) -> Tensor:
    """One clipped optimiser step; a gradient that is not finite is skipped. Returns its norm."""
    optimizer.zero_grad(set_to_none=True)
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(model.parameters(), config.policy.max_grad_norm)
    if torch.isfinite(norm):
        optimizer.step()
    return norm
