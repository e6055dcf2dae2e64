"""Learning rates as a function of the step, by transformers' formulas and names.

Nothing of a schedule is kept: a rate is what its setting says, times a factor of the step, for one
update. So a checkpoint needs no more than the step, and a resumed run has the rates it would have
had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from transformers import get_scheduler

from dfpo.config import Config

Factor = Callable[[int], float]


def factor_of(config: Config, first: int = 0) -> Factor:
    """Step of the run -> what learning rates are multiplied by; the schedule begins at step
    ``first`` and ends with the run."""
    if config.schedule == "constant":
        return lambda step: 1.0

    # The formula is a closure that transformers makes for an optimiser, which it does not read.
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    formula = get_scheduler(
        config.schedule,
        optimizer,
        num_warmup_steps=config.schedule_warmup,
        num_training_steps=max(1, config.steps - first),
    ).lr_lambdas[0]
    return lambda step: formula(step - first)


def factors(config: Config, step: int) -> dict[str, float]:
    """What the rates of policy and critic are multiplied by in a step. The policy's schedule begins
    with the policy's training, after the critic's warm-up."""
    starts = {"policy": config.critic.warmup_steps, "critic": 0}
    return {name: factor_of(config, first)(step) for name, first in starts.items() if step >= first}


@contextmanager
def scheduled(
    optimizers: dict[str, torch.optim.Optimizer | None], config: Config, step: int
) -> Iterator[dict[str, float]]:
    """The optimisers, by part, have the rates of this step inside and those of their settings
    afterwards. Gives the rate of each part, for the metrics; none where they are constant."""
    kept = []
    metrics = {}
    for name, factor in factors(config, step).items():
        optimizer = optimizers.get(name)
        for group in optimizer.param_groups if optimizer is not None else []:
            kept.append((group, group["lr"]))
            group["lr"] *= factor
        if optimizer is not None and config.schedule != "constant":
            metrics[f"learning_rate/{name}"] = optimizer.param_groups[0]["lr"]

    try:
        yield metrics
    finally:
        for group, rate in kept:
            group["lr"] = rate
