"""Minibatches, backward, clip, step: one rollout's update of critic and policy."""

from __future__ import annotations

from collections import defaultdict

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from dfpo.config import Config
from dfpo.method.critic import Critic
from dfpo.method.losses import clipped_loss, kl_loss, trajectory_balance_loss
from dfpo.method.targets import Targets
from dfpo.rollout.collect import Rollout
from dfpo.rollout.policy import Samples, token_logprobs


def update(
    accelerator: Accelerator,
    policy: PreTrainedModel,
    critic: Critic,
    policy_optimizer: torch.optim.Optimizer,
    critic_optimizer: torch.optim.Optimizer | None,
    rollout: Rollout,
    targets: Targets,
    config: Config,
    generator: torch.Generator,
    *,
    train_policy: bool,
) -> dict[str, float]:
    """Passes over the rollout in shuffled minibatches; returns the mean of each metric. A critic
    without an optimiser of its own is not trained, or with the policy."""
    sums: dict[str, list[Tensor]] = defaultdict(list)
    count = rollout.samples.mask.shape[0]
    longest = sorted(rollout.lengths, reverse=True)
    parameters = [p for group in policy_optimizer.param_groups for p in group["params"]]
    epochs = config.policy.epochs if train_policy else config.critic.warmup_epochs
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator, device=generator.device)
        for rows in order.chunk(config.policy.minibatches):
            samples = Samples(*(x[rows] for x in rollout.samples))
            batch = targets.select(rows)

            found: dict[str, Tensor] = {}
            if critic_optimizer is not None:
                most = sum(longest[: len(rows)])
                loss, terms = critic.loss(samples, batch, generator, most)
                norm = _step(accelerator, critic_optimizer, loss, critic.parts(), config)
                found |= {"loss/critic": loss, "grad_norm/critic": norm}
                found |= {f"critic/{name}": term for name, term in terms.items()}
            if train_policy:
                old, ref = rollout.old_logprobs[rows], rollout.ref_logprobs[rows]
                loss, metrics = policy_loss(policy, critic, samples, batch, old, ref, config)
                norm = _step(accelerator, policy_optimizer, loss, [parameters], config)
                found |= {"loss/policy": loss, "grad_norm/policy": norm}
                found |= {f"policy/{name}": value for name, value in metrics.items()}
            for name, value in found.items():
                sums[name].append(value.detach())
    if not sums:
        return {}
    # One wait for the device, not one per metric.
    means = torch.stack([torch.stack(values).mean().float() for values in sums.values()])
    return dict(zip(sums, means.tolist(), strict=True))


def policy_loss(
    policy: PreTrainedModel,
    critic: Critic,
    samples: Samples,
    targets: Targets,
    old_logprobs: Tensor,  # [B, T]
    ref_logprobs: Tensor,  # [B, T]
    config: Config,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss that ``policy.loss`` names, its KL term included, and its metrics."""
    settings, mask = config.policy, samples.mask
    if settings.loss == "trajectory_balance":
        with critic.watch(policy) as hidden:
            logprobs, _ = token_logprobs(policy, samples, config.rollout.temperature, entropy=False)
        return trajectory_balance_loss(
            logprobs, old_logprobs, ref_logprobs, targets.advantages,
            critic.log_partition(hidden[-1], samples), mask,
            beta=settings.beta, clip=settings.clip, clip_high=settings.clip_high,
        )  # fmt: skip
    logprobs, _ = token_logprobs(policy, samples, config.rollout.temperature, entropy=False)
    averaged = {"average": settings.average, "longest": config.rollout.max_new_tokens}
    loss, metrics = clipped_loss(
        logprobs, old_logprobs, targets.advantages, mask,
        clip=settings.clip, clip_high=settings.clip_high, dual_clip=settings.dual_clip, **averaged,
    )  # fmt: skip
    kl = kl_loss(logprobs, ref_logprobs, mask, **averaged)
    return loss + settings.kl_coef * kl, {**metrics, "kl": kl.detach()}


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
    clip = config.policy.max_grad_norm
    norms = [accelerator.clip_grad_norm_(part, clip) for part in parts]
    norm = torch.stack(norms).norm()
    # The fused optimiser reads the flag on the device, where asking for it here would wait.
    fused = getattr(optimizer, "optimizer", optimizer)
    fused.grad_scale, fused.found_inf = None, (~torch.isfinite(norm)).float()
    optimizer.step()
    return norm
