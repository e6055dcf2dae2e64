"""Policy losses by name: each (policy, critic, batch, config) -> (loss, metrics), with a row in
``dfpo.config.choices``. The formulas are in ``losses.py``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel

from dfpo.config import Config
from dfpo.config.types import Counts, Rollout, Samples, Targets, row_index
from dfpo.method.critics import Critic
from dfpo.method.losses import clipped_loss, kl_loss, trajectory_balance_loss
from dfpo.rollout.policy import token_logprobs

Loss = tuple[Tensor, dict[str, Tensor]]


@dataclass
class PolicyBatch:
    """What a policy loss learns from: some answers of a minibatch of a rollout."""

    samples: Samples
    advantages: Tensor  # [B, T]
    # Of the policy that drew the answers. None where no policy has looked at them since.
    old_logprobs: Tensor | None  # [B, T]
    ref_logprobs: Tensor  # [B, T]
    counts: Counts  # of the whole minibatch
    weights: Tensor | None = None  # [B, T], where another distribution drew; None: 1
    entropy: Tensor | None = None  # [B, T], of the policy that drew, from its look

    @staticmethod
    def of(rollout: Rollout, targets: Targets, rows: list[int], counts: Counts) -> PolicyBatch:
        samples = rollout.samples.part(rows)
        index = row_index(rows, samples.mask.device)
        length, old = samples.mask.shape[1], rollout.old_logprobs
        return PolicyBatch(
            samples=samples,
            advantages=targets.advantages[index, :length],
            old_logprobs=old if old is None else old[index, :length],
            ref_logprobs=rollout.ref_logprobs[index, :length],
            counts=counts,
            weights=targets.weights if targets.weights is None else targets.weights[index, :length],
        )

    def logprobs(self, policy: PreTrainedModel, temperature: float) -> Tensor:  # [B, T]
        """The policy's log-probabilities of the answers, with a gradient. The first look since
        they were drawn is of the policy that drew them, so it tells the old ones too."""
        first = self.old_logprobs is None
        logprobs, entropy = token_logprobs(policy, self.samples, temperature, entropy=first)
        if first:
            self.old_logprobs, self.entropy = logprobs.detach(), entropy
        return logprobs


def clip(policy: PreTrainedModel, critic: Critic, batch: PolicyBatch, config: Config) -> Loss:
    """PPO's clipped objective and ``policy.kl_coef`` times the KL to the first policy."""
    settings, mask = config.policy, batch.samples.mask
    logprobs = batch.logprobs(policy, config.rollout.temperature)

    averaged = {
        "average": settings.average,
        "longest": config.rollout.max_new_tokens,
        "counts": batch.counts,
    }
    loss, metrics = clipped_loss(
        logprobs, batch.old_logprobs, batch.advantages, mask,
        clip=settings.clip, clip_high=settings.clip_high, dual_clip=settings.dual_clip,
        weights=batch.weights, **averaged,
    )  # fmt: skip
    kl = kl_loss(logprobs, batch.ref_logprobs, mask, **averaged)

    return loss + settings.kl_coef * kl, {**metrics, "kl": kl.detach()}


def trajectory_balance(
    policy: PreTrainedModel, critic: Critic, batch: PolicyBatch, config: Config
) -> Loss:
    """FlowRL's residual; the critic reads log Z off the policy's own states, so its gradient
    reaches the policy."""
    settings = config.policy
    with critic.watch(policy) as hidden:
        logprobs = batch.logprobs(policy, config.rollout.temperature)

    return trajectory_balance_loss(
        logprobs, batch.old_logprobs, batch.ref_logprobs, batch.advantages,
        critic.log_partition(hidden[-1], batch.samples), batch.samples.mask,
        beta=settings.beta, clip=settings.clip, clip_high=settings.clip_high,
        counts=batch.counts,
    )  # fmt: skip
