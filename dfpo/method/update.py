"""Minibatches, micro-batches, backward, clip, step: one rollout's update of critic and policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from dfpo.config import Config
from dfpo.config.choices import POLICY_LOSSES
from dfpo.config.draws import Stream, uniforms
from dfpo.config.types import Counts, Rollout, Targets, row_index
from dfpo.method.critics import Critic
from dfpo.method.policy_losses import PolicyBatch
from dfpo.method.schedule import scheduled
from dfpo.rollout.adapters import root_of
from dfpo.rollout.batches import shares_of
from dfpo.rollout.policy import recomputing
from dfpo.rollout.processes import Processes
from dfpo.rollout.sharding import is_sharded

Metrics = dict[str, Tensor]
PartLoss = Callable[[list[int]], tuple[Tensor, Metrics]]


@dataclass(frozen=True)
class Learner:
    """What an update changes."""

    policy: PreTrainedModel
    critic: Critic
    policy_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer | None  # None: the critic has nothing of its own
    generator: torch.Generator


def update(
    learner: Learner,
    rollout: Rollout,
    targets: Targets,
    config: Config,
    step: int,
    *,
    train_policy: bool,
) -> tuple[dict[str, float], Rollout]:
    """Passes over the rollout in shuffled minibatches; returns the mean of each metric, and the
    rollout with the log-probabilities of the policy that drew it, should it have come without. A
    critic without an optimiser of its own is not trained, or with the policy."""
    history: list[Metrics] = []
    seen = _Seen.of(rollout) if train_policy else None
    epochs = config.policy.epochs if train_policy else config.critic.warmup_epochs
    optimizers = {"policy": learner.policy_optimizer, "critic": learner.critic_optimizer}

    with scheduled(optimizers, config, step) as rates:
        for epoch in range(epochs):
            for rows in minibatches(len(rollout.answers), config, step, epoch):
                metrics: Metrics = {}
                if learner.critic_optimizer is not None:
                    metrics |= _train_critic(learner, rollout, targets, rows, config)
                if train_policy:
                    metrics |= _train_policy(learner, rollout, targets, rows, config, seen)
                history.append(metrics)

    if seen is not None:
        rollout = seen.told(rollout)
    return _averages(history, learner.policy.device) | rates, rollout


@dataclass(frozen=True)
class _Seen:
    """What the first look at each answer since it was drawn tells of the policy that drew it; 0 of
    answers that other processes look at."""

    logprobs: Tensor  # [B, T]
    entropy: Tensor  # [B, T]

    @staticmethod
    def of(rollout: Rollout) -> _Seen | None:
        """None where the rollout knows it all."""
        if rollout.old_logprobs is not None:
            return None
        return _Seen(torch.zeros_like(rollout.ref_logprobs), torch.zeros_like(rollout.ref_logprobs))

    def take(self, rows: list[int], batch: PolicyBatch) -> None:
        index, mask = row_index(rows, batch.samples.mask.device), batch.samples.mask
        for kept, looked in ((self.logprobs, batch.old_logprobs), (self.entropy, batch.entropy)):
            kept[index, : mask.shape[1]] = torch.where(mask, looked, 0.0)

    def told(self, rollout: Rollout) -> Rollout:
        everyone = Processes.here().sum
        return dataclasses.replace(
            rollout, old_logprobs=everyone(self.logprobs), entropy=everyone(self.entropy)
        )


def minibatches(answers: int, config: Config, step: int, epoch: int) -> Iterator[list[int]]:
    """The rows of each minibatch, shuffled: as many of them as ``policy.minibatches`` says, whose
    sizes differ by one at most, or one a row where there are fewer rows."""
    draws = uniforms(config.seed, Stream.ORDER, step, torch.tensor([epoch]), answers)
    order = draws[0].argsort().tolist()
    count = min(config.policy.minibatches, answers)
    for i in range(count):
        yield order[answers * i // count : answers * (i + 1) // count]


def _train_critic(
    learner: Learner, rollout: Rollout, targets: Targets, rows: list[int], config: Config
) -> Metrics:
    critic, samples = learner.critic, rollout.samples
    counts = Counts.of([samples.counts[i] for i in rows])
    length = samples.mask.shape[1]
    index = row_index(rows, samples.mask.device)
    prepared = critic.prepare(
        targets.critic.part(rows, length), samples.mask[index], learner.generator
    )
    place = {row: i for i, row in enumerate(rows)}

    def part_loss(some: list[int]) -> tuple[Tensor, Metrics]:
        part = samples.part(some)
        learned = prepared.part([place[row] for row in some], part.mask.shape[1])
        loss, terms = critic.loss(part, learned, counts)
        return loss, {"loss/critic": loss.detach()} | {
            f"critic/{name}": term for name, term in terms.items()
        }

    shares = shares_of(samples, rows, config.micro_tokens or 0)
    metrics = _accumulate(
        learner.critic_optimizer, shares, part_loss,
        model=root_of(getattr(critic, "trunk", critic)), sharded=is_sharded(critic),
    )  # fmt: skip
    norm = _step(learner.critic_optimizer, critic.parts(), config)

    return metrics | {"grad_norm/critic": norm}


def _train_policy(
    learner: Learner,
    rollout: Rollout,
    targets: Targets,
    rows: list[int],
    config: Config,
    seen: _Seen | None,
) -> Metrics:
    policy_loss = POLICY_LOSSES[config.policy.loss].load()
    counts = Counts.of([rollout.samples.counts[i] for i in rows])
    shares = shares_of(rollout.samples, rows, config.micro_tokens or 0)
    mine = {row for part in shares[Processes.here().rank] for row in part}

    def part_loss(some: list[int]) -> tuple[Tensor, Metrics]:
        batch = PolicyBatch.of(rollout, targets, some, counts)
        loss, terms = policy_loss(learner.policy, learner.critic, batch, config)
        if batch.old_logprobs is None:
            # A loss that looks by itself. The weights are still those that drew.
            with torch.no_grad():
                batch.logprobs(learner.policy, config.rollout.temperature)
        if seen is not None and mine.issuperset(some):
            seen.take(some, batch)
        return loss, {"loss/policy": loss.detach()} | {
            f"policy/{name}": term.detach() for name, term in terms.items()
        }

    optimizer = learner.policy_optimizer
    metrics = _accumulate(
        optimizer, shares, part_loss,
        model=root_of(learner.policy), sharded=is_sharded(learner.policy),
    )  # fmt: skip
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    return metrics | {"grad_norm/policy": _step(optimizer, [parameters], config)}


def _accumulate(
    optimizer: torch.optim.Optimizer,
    shares: list[list[list[int]]],  # of each process
    part_loss: PartLoss,
    *,
    model: nn.Module,  # whose layers may be computed again
    sharded: bool,
) -> Metrics:
    """Gradients of a minibatch from its parts, and the metrics of this process' parts: each is a
    share of the minibatch's mean, but for the largest ratio."""
    optimizer.zero_grad(set_to_none=True)
    mine = shares[Processes.here().rank]
    sums: Metrics = {}
    for some in mine:
        with recomputing(model):
            loss, metrics = part_loss(some)
            loss.backward()
        for name, value in metrics.items():
            if name not in sums:
                sums[name] = value
            elif _is_most(name):
                sums[name] = torch.maximum(sums[name], value)
            else:
                sums[name] = sums[name] + value

    if sharded:
        # Every pass gathers weights from all processes, so that all must take as many: one answer
        # that counts nothing, the last one, which is among the shortest, stands in.
        spare = max((share for share in shares if share), key=len)[-1][-1:]
        for _ in range(max(map(len, shares)) - len(mine)):
            with recomputing(model):
                (0.0 * part_loss(spare)[0]).backward()

    return sums


def _step(
    optimizer: torch.optim.Optimizer, parts: list[list[nn.Parameter]], config: Config
) -> Tensor:
    """One clipped optimiser step, left out where the gradient is not finite. Returns its norm,
    over all parts, each of which is clipped by its own."""
    processes, sharded = Processes.here(), False
    norms = []
    for part in parts:
        sharded = any(isinstance(parameter, DTensor) for parameter in part)
        if not sharded:
            processes.sum_gradients(part)
        norm = nn.utils.clip_grad_norm_(part, config.max_grad_norm)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    norm = torch.stack(norms).norm()

    if sharded:
        # A flag on the device is for weights that are whole.
        if torch.isfinite(norm):
            optimizer.step()
        return norm

    # The fused optimiser reads the flag on the device, where asking for it here would wait.
    optimizer.grad_scale, optimizer.found_inf = None, (~torch.isfinite(norm)).float()
    optimizer.step()
    return norm


def _is_most(name: str) -> bool:
    return name.endswith("_max")


def _averages(history: list[Metrics], device: torch.device) -> dict[str, float]:
    """Each metric's mean over minibatches, of all processes; one wait for the device."""
    processes = Processes.here()
    names = processes.from_lead(lambda: list(dict.fromkeys(n for made in history for n in made)))
    if not names:
        return {}

    def table(chosen: list[str]) -> Tensor:  # [minibatches, names]
        nothing = torch.zeros((), device=device)
        rows = [torch.stack([made.get(n, nothing).float() for n in chosen]) for made in history]
        return torch.stack(rows)

    most = [name for name in names if _is_most(name)]
    # Every process knows the norm of the whole gradient: the first one's counts.
    norms = [name for name in names if name.startswith("grad_norm/")]
    sums = [name for name in names if name not in most and name not in norms]
    means_of: dict[str, Tensor] = {}

    for chosen, over in ((sums, processes.sum), (most, processes.most), (norms, lambda x: x)):
        if chosen:
            means_of |= zip(chosen, over(table(chosen)).mean(0), strict=True)

    means = torch.stack([means_of[name] for name in names]).tolist()
    return dict(zip(names, means, strict=True))
