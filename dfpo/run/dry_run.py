"""``dfpo train --dry-run``: everything is loaded, probed and tried, and nothing written.

Time and memory are measured, not guessed: steps of each kind that the run has are taken, with full
batches and the run's own prompts, and forgotten with the process.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from dfpo.config import Config
from dfpo.rollout.processes import Processes
from dfpo.run.given import Given
from dfpo.run.listing import duration
from dfpo.run.progress import Progress
from dfpo.run.setup import NOTHING, Setup, set_up
from dfpo.run.stop import StopRequest
from dfpo.run.summary import describe_start, peak_memory
from dfpo.run.train import train_step

MOST_TRIES, TRY_SECONDS = 3, 5.0
CRITIC_ALONE, BOTH = "step of the critic alone", "step"


@dataclass(frozen=True)
class Tried:
    """A step that was taken."""

    count: int  # such steps in the run
    metrics: dict[str, float]

    @property
    def seconds(self) -> float:
        return self.metrics["perf/seconds"]


def dry_run(config: Config, given: Given = NOTHING) -> str:
    """What the run would be. Raises what ``train`` would raise before its first step."""
    config = dataclasses.replace(config, answers_every=0)  # a step writes nothing else
    with StopRequest().listen():
        setup = set_up(config, None, given)
        progress = Progress()
        start = describe_start(setup, progress)
        tried = {
            name: Tried(count, fastest_step(setup, progress, first))
            for name, (first, count) in kinds_of_step(config).items()
        }
    return say_plan(setup, start, tried) if Processes.here().leads else ""


def fastest_step(setup: Setup, progress: Progress, first: int) -> dict[str, float]:
    """The metrics of the fastest of some steps: the first also warms libraries and caches up. Of
    long steps one is enough."""
    taken: list[dict[str, float]] = []
    while len(taken) < MOST_TRIES and sum(m["perf/seconds"] for m in taken) < TRY_SECONDS:
        taken.append(train_step(setup, progress, [], first))
    return min(taken, key=lambda metrics: metrics["perf/seconds"])


def kinds_of_step(config: Config) -> dict[str, tuple[int, int]]:
    """Each kind of step that the run has: its first one, and how many there are."""
    warmup = min(config.critic.warmup_steps, config.steps)
    kinds = {CRITIC_ALONE: (0, warmup), BOTH: (warmup, config.steps - warmup)}
    return {name: (first, count) for name, (first, count) in kinds.items() if count}


def say_plan(setup: Setup, start: str, tried: dict[str, Tried]) -> str:
    config = setup.config
    lines = [f"dry run: nothing is written. {start}"]
    for name, step in tried.items():
        lines.append(f"{name}: {step.seconds:.2f} s, taken {step.count} times")

    total = sum(step.seconds * step.count for step in tried.values())
    answers, times = evaluated_answers(setup), evaluations(config)
    if answers and tried:
        each = answers * seconds_an_answer(setup, tried)
        total += times * each
        lines.append(
            f"evaluation: {each:.1f} s, taken {times} times: {answers} answers, each as long as "
            "one of a step took"
        )

    place = "of the GPU" if setup.policy.device.type == "cuda" else "resident"
    lines += [
        f"time: about {duration(total)}, without checkpoints and plots",
        f"memory: {measured_memory(setup):.2f} GB {place} at most, in the steps taken",
        f"disk: {disk_gigabytes(setup):.2f} GB for {config.checkpoint_keep + 1} checkpoints and "
        "the models",
    ]
    return "\n".join(lines)


def evaluated_answers(setup: Setup) -> int:
    """Answers of one evaluation: a greedy one to each prompt, and the sampled ones."""
    held_out = setup.source.held_out.values()
    prompts = sum(len(rows) for splits in held_out for rows in splits.values())
    return prompts * (1 + setup.config.eval.samples)


def evaluations(config: Config) -> int:
    """Before, after, and while training; the last of these is the one after it."""
    every = config.eval.every
    return 2 + ((config.steps - 1) // every if every and config.steps else 0)


def seconds_an_answer(setup: Setup, tried: dict[str, Tried]) -> float:
    """Of the fastest rollout, rewards included: the first one also warms caches up."""
    rollout = setup.config.rollout
    fastest = min(step.metrics["perf/rollout_seconds"] for step in tried.values())
    return fastest / (rollout.prompts * rollout.samples)


def measured_memory(setup: Setup) -> float:
    """GB at most so far."""
    if setup.policy.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return peak_memory()


def disk_gigabytes(setup: Setup) -> float:
    """Of weights and optimisers in each checkpoint, one more while it is written, and of the
    final models."""
    trained = [
        parameter
        for optimizer in (setup.policy_optimizer, setup.critic_optimizer) if optimizer
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]  # fmt: skip
    weights = sum(p.numel() * p.element_size() for p in trained)
    return (3 * (setup.config.checkpoint_keep + 1) + 1) * weights / 1e9
