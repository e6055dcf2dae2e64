"""What makes a critic strong under noise: answers, updates, slower ones, averaged weights?

    python results/leads/strong.py

The policy stands still. Every critic gets the same rollouts of 64 answers on the suite with
headroom, and is then asked about 1,280 other answers: the squared correlation of its value with the
clean return, over all tokens and before the last one, and the chance that there a right answer has
the higher value. One development seed. Trains what is not yet in strong.jsonl beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dfpo.config import build_config
from dfpo.config.types import Counts, Rollout
from dfpo.method.critics import estimate_values
from dfpo.method.targets import compute_targets
from dfpo.method.update import _step
from dfpo.rollout.collect import collect
from dfpo.run.setup import Setup, set_up

HERE = Path(__file__).parent
RECORDS = HERE / "strong.jsonl"
SEED, HELD_OUT_SEED = 460, 999
SETTINGS = {
    "task": "hard", "steps": 200, "eval.prompts": 10, "eval.examples": 0, "threads": 1,
    "rollout.max_new_tokens": 64, "target.lam": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class Way:
    """How a critic learns from each rollout, once it has come."""

    rate: float = 1.0  # of the critic's learning rate
    falling: bool = False  # linearly to 0
    minibatches: int = 1
    passes: int = 1
    average: float = 0.0  # exponential moving average of the weights, asked in their place


WAYS = {
    "as it is": Way(),
    "a third of the rate": Way(rate=1 / 3),
    "rate falls": Way(falling=True),
    "three times, falls": Way(rate=3, falling=True),
    "weights averaged, .98": Way(average=0.98),
    "4 minibatches": Way(minibatches=4),
    "4 minibatches, rate falls": Way(minibatches=4, falling=True),
    "4 minibatches, averaged, .99": Way(minibatches=4, average=0.99),
    "2 passes": Way(passes=2),
}
# Algorithm, noise, rollouts -> ways.
TRIES = {
    ("ppo", "none", 100): ["as it is", "three times, falls"],
    ("ppo", "flip=0.3", 100): [
        "as it is", "a third of the rate", "rate falls", "three times, falls",
        "4 minibatches, rate falls", "4 minibatches, averaged, .99",
    ],
    ("ppo", "flip=0.3", 200): [
        "as it is", "4 minibatches, averaged, .99", "three times, falls",
        "weights averaged, .98", "4 minibatches", "2 passes",
    ],
    ("dfpo", "heavy=1", 100): ["as it is", "three times, falls"],
}  # fmt: skip


def setup_of(algorithm: str, noise: str, seed: int) -> Setup:
    own = {"algorithm": algorithm, "noise": noise, "seed": seed}
    return set_up(build_config(SETTINGS | own), HERE)


def rollouts(noise: str, seed: int, count: int) -> list[Rollout]:
    setup = setup_of("ppo", noise, seed)
    return [
        collect(
            setup.sampler, setup.first, setup.source.training(step, 16),
            reward=setup.reward, noise=setup.noise, config=setup.config, step=step,
        )
        for step in range(count)
    ]  # fmt: skip


def train(setup: Setup, rolled: list[Rollout], way: Way) -> None:
    optimizer = setup.critic_optimizer
    rates = [way.rate * group["lr"] for group in optimizer.param_groups]
    trained = [p for p in setup.critic.parameters() if p.requires_grad]
    averages = [p.detach().clone() for p in trained]
    total, made = len(rolled) * way.passes * way.minibatches, 0

    for step, rollout in enumerate(rolled):
        setup.space.tell(rollout)
        estimate = estimate_values(setup.critic, rollout.samples, setup.generator)
        mapped = setup.space.mapped(rollout)
        targets = compute_targets(mapped, estimate, setup.config, step).critic
        for number in range(way.passes):
            shuffle = torch.Generator().manual_seed(10 * step + number)
            order = torch.randperm(len(rollout.answers), generator=shuffle)
            for rows in order.tensor_split(way.minibatches):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * (1 - made / total if way.falling else 1)
                part = rollout.samples.part(rows.tolist())
                learned = targets.part(rows.tolist(), part.mask.shape[1])
                prepared = setup.critic.prepare(learned, part.mask, setup.generator)
                loss, _ = setup.critic.loss(part, prepared, Counts.of(part.lengths))
                optimizer.zero_grad()
                loss.backward()
                _step(optimizer, setup.critic.parts(), setup.config)
                made += 1
                # The plain mean until there are as many updates as the average reaches back.
                weight = min(way.average, made / (made + 1))
                for average, parameter in zip(averages, trained, strict=True):
                    average.lerp_(parameter.detach(), 1 - weight)

    for average, parameter in zip(averages, trained, strict=True):
        parameter.data.copy_(average)


def score(setup: Setup, held_out: list[Rollout]) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    values, returns, last, right = [], [], [], []
    for rollout in held_out:
        mask, clean = rollout.samples.mask, rollout.clean_rewards
        value = estimate_values(setup.critic, rollout.samples, generator).quantiles.mean(-1)
        values.append(value[mask])
        returns.append(clean[:, None].expand_as(mask)[mask])
        last.append(value[torch.arange(len(clean)), mask.sum(-1) - 1])
        right.append(clean > 0.5)
    values, returns, last, right = (torch.cat(of).numpy() for of in (values, returns, last, right))
    above = last[right][:, None] > last[~right][None]
    return {
        "all tokens": float(np.corrcoef(values, returns)[0, 1] ** 2),
        "last token": float(np.corrcoef(last, right)[0, 1] ** 2),
        "auc": float(above.mean()),
    }


def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDS.open()] if RECORDS.exists() else []


def main() -> None:
    torch.set_num_threads(1)
    held_out: list[Rollout] = []
    for (algorithm, noise, count), names in TRIES.items():
        place = {"critic": algorithm, "noise": noise, "rollouts": count}
        known = {row["way"] for row in records() if row.items() >= place.items()}
        todo = [name for name in names if name not in known]
        if not todo:
            continue
        held_out = held_out or rollouts("none", HELD_OUT_SEED, 20)
        rolled = rollouts(noise, SEED, count)
        for name in todo:
            setup = setup_of(algorithm, noise, SEED)
            train(setup, rolled, WAYS[name])
            row = place | {"way": name} | score(setup, held_out)
            with RECORDS.open("a") as file:
                file.write(json.dumps(row) + "\n")

    for row in records():
        numbers = "  ".join(f"{row[key]:.3f}" for key in ("all tokens", "last token", "auc"))
        print(f"{row['critic']:5} {row['noise']:9} {row['rollouts']:4}  {row['way']:32} {numbers}")


if __name__ == "__main__":
    main()
