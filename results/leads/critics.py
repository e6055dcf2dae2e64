"""Why value-flow critics learned slowly under flipped rewards, and what makes them learn.

    python results/leads/critics.py

The policy stands still, so every critic sees the same 120 rollouts of 64 answers, one pass each
unless it says more, and is probed on the same states with 64 plays each. Development seeds. Trains
what is not yet in critics.jsonl beside it, one process a seed, and prints means over seeds and the
explained variance above that of ``dfpo-mean``, seed by seed.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import pickle
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
import numpy as np
import torch

from dfpo.config import build_config
from dfpo.config.noise import parse_noise
from dfpo.config.types import Counts, CriticTargets, Rollout
from dfpo.method.critics import estimate_values
from dfpo.method.targets import compute_targets
from dfpo.method.update import _step
from dfpo.rollout.collect import collect
from dfpo.run.setup import Setup, set_up
from dfpo.study.probe.replays import replay
from dfpo.study.probe.scores import crps, wasserstein
from dfpo.study.statistics import paired_difference, student_interval
from dfpo_kernels import FlowField
from dfpo_kernels.nn import ValueFlowHead

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

HERE = Path(__file__).parent
RECORDS, TRUTH = HERE / "critics.jsonl", HERE / "truth.pickle"
SEEDS = (100, 101, 102, 103)  # of no comparison
UPDATES, SCORED = 120, (80, 100, 120)  # the mean of three looks: one is as noisy as a seed
SETTINGS = {
    "algorithm": "dfpo-mean", "steps": UPDATES, "eval.prompts": 10, "eval.seed": 77,
    "eval.examples": 0, "threads": 1,
}  # fmt: skip


class ReachesTrunk(ValueFlowHead):
    """The flow's gradient reaches the trunk, times ``share``."""

    share = 1.0

    def fields(self, hidden: torch.Tensor) -> tuple[FlowField, FlowField]:
        passed = hidden.detach() + self.share * (hidden - hidden.detach())
        condition = self.conditioner(passed)
        bias, offset = self.bias(condition), self.mean(hidden).squeeze(-1)
        gains = self.gain(condition).split(self.width, -1)
        shared = (self.z_weight, self.time_weight)
        velocity, one_step = (FlowField(bias, gain, offset, *shared) for gain in gains)
        return velocity, one_step


class ClippedReadout(ValueFlowHead):
    """The flow's distribution about the location, clipped, whatever that does to its mean."""

    def _returns(self, z: torch.Tensor, field: FlowField) -> torch.Tensor:
        return self._clip(z * self.return_scale + self.return_mean)


def head_of(kind: type[ValueFlowHead], **attributes: Any) -> Callable[[Setup], None]:
    def change(setup: Setup) -> None:
        setup.critic.head.__class__ = kind
        for name, value in attributes.items():
            setattr(setup.critic.head, name, value)

    return change


def one_part(setup: Setup) -> None:
    """Gradients of mean and flow are clipped by one norm."""
    setup.critic.parts = lambda: [list(setup.critic.parameters())]


def drawn_mean(targets: CriticTargets) -> CriticTargets:
    """The location learns the mean of the drawn horizons."""
    return dataclasses.replace(targets, mean=None)


@dataclass(frozen=True)
class Variant:
    """A critic: settings, what is done to the critic and to its targets, passes over a rollout."""

    settings: dict[str, Any]
    change: Callable[[Setup], None] = lambda setup: None
    targets: Callable[[CriticTargets], CriticTargets] = lambda targets: targets
    passes: int = 1


TENTH = {"coef.anchor": 0.1, "coef.consistency": 0.05, "coef.quantile": 0.1, "coef.risk": 0.01}
JOINT = {"critic.linear_mean": False}
CRITICS = {
    "ppo": Variant({"algorithm": "ppo"}),
    "ppo-ridge": Variant({"algorithm": "ppo-ridge"}),
    "dvpo": Variant({"algorithm": "dvpo"}),
    "dfpo-mean": Variant({}),
    "dfpo-paper": Variant({"algorithm": "dfpo-paper"}),
    "joint": Variant(JOINT),
    "joint, flow terms / 10": Variant({**JOINT, **TENTH}),
    "joint, returns unclipped": Variant({**JOINT, "critic.clip_returns": False}),
    "joint, shared noise": Variant({**JOINT, "critic.coupling": "shared_noise"}),
    "dfpo-mean, flow reaches trunk": Variant({}, head_of(ReachesTrunk)),
    "dfpo-mean, a tenth reaches trunk": Variant({}, head_of(ReachesTrunk, share=0.1)),
    "dfpo-mean, readout clipped": Variant({}, head_of(ClippedReadout)),
    "dfpo-mean, clipped in one part": Variant({}, one_part),
    "dfpo-mean, drawn mean": Variant({}, targets=drawn_mean),
    "ppo, 4 passes": Variant({"algorithm": "ppo"}, passes=4),
    "dfpo-mean, 4 passes": Variant({}, passes=4),
}
NOISES = {
    "flip=0.3": list(CRITICS),
    "none": ["ppo", "ppo-ridge", "dfpo-mean", "joint", "dfpo-mean, flow reaches trunk"],
}


def train_seed(seed: int, done: set[tuple[str, str, int]]) -> list[dict[str, Any]]:
    found = []
    for noise, names in NOISES.items():
        todo = [name for name in names if (name, noise, seed) not in done]
        rolled = rollouts(noise, seed) if todo else []
        for name in todo:
            found.append(train_one(name, noise, seed, rolled))
            print(found[-1], file=sys.stderr, flush=True)
    return found


def rollouts(noise: str, seed: int) -> list[Rollout]:
    setup = set_up(build_config({**SETTINGS, "noise": noise, "seed": seed}), HERE)
    return [
        collect(
            setup.sampler, setup.first, setup.source.training(step, 16),
            reward=setup.reward, noise=setup.noise, config=setup.config, step=step,
        )
        for step in range(UPDATES)
    ]  # fmt: skip


def train_one(name: str, noise: str, seed: int, rolled: list[Rollout]) -> dict[str, Any]:
    variant = CRITICS[name]
    settings = {**SETTINGS, **variant.settings, "noise": noise, "seed": seed}
    setup = set_up(build_config(settings), HERE)
    variant.change(setup)
    looks = []
    for step, rollout in enumerate(rolled):
        estimate = estimate_values(setup.critic, rollout.samples, setup.generator)
        targets = variant.targets(compute_targets(rollout, estimate, setup.config, step).critic)
        for _ in range(variant.passes):
            samples, optimizer = rollout.samples, setup.critic_optimizer
            prepared = setup.critic.prepare(targets, samples.mask, setup.generator)
            loss, _ = setup.critic.loss(samples, prepared, Counts.of(samples.lengths))
            optimizer.zero_grad()
            loss.backward()
            _step(optimizer, setup.critic.parts(), setup.config)
        if step + 1 in SCORED:
            looks.append(score(setup, noise))
    means = {key: fmean(look[key] for look in looks) for key in looks[0]}
    return {"critic": name, "noise": noise, "seed": seed, **means}


def score(setup: Setup, noise: str) -> dict[str, float]:
    """Of the mean and the distribution that were taught, which flips make of the clean ones."""
    samples, clean = pickle.loads(TRUTH.read_bytes())
    flip = parse_noise(noise).levels.get("flip", 0.0)
    value = flip + (1 - 2 * flip) * clean.mean(1)
    generator = torch.Generator().manual_seed(0)
    distribution = estimate_values(setup.critic, samples, generator).quantiles[samples.mask].numpy()
    levels = (np.arange(64) + 0.5) / 64
    taught = (levels > 1 - value[:, None]).astype(float)  # quantiles of Bernoulli(value)
    one_law = np.broadcast_to(levels > 1 - value.mean(), taught.shape).astype(float)
    predicted = distribution.mean(1)
    # All that is to know of a reward that is 0 or 1 is its mean.
    implied = (levels > 1 - predicted.clip(0, 1)[:, None]).astype(float)
    return {
        "explained_variance": float(1 - (value - predicted).var() / value.var()),
        "bias": float((predicted - value).mean()),
        "w1": float(wasserstein(distribution, taught).mean()),
        "crps_skill": skill(distribution, one_law, taught),
        "implied_w1": float(wasserstein(implied, taught).mean()),
        "implied_skill": skill(implied, one_law, taught),
    }


def skill(distribution: np.ndarray, one_law: np.ndarray, taught: np.ndarray) -> float:
    return float(1 - crps(distribution, taught).mean() / crps(one_law, taught).mean())


def make_truth() -> None:
    """Answers of the standing policy, and clean returns [N, 64] of plays from their N states."""
    played = replay(set_up(build_config(SETTINGS), HERE), answers=10, plays=64)
    samples = played.rollout.samples
    TRUTH.write_bytes(pickle.dumps((samples, played.clean[samples.mask].numpy())))


def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDS.open()] if RECORDS.exists() else []


def explained(name: str, noise: str) -> dict[int, float]:
    """Explained variance of one critic by seed."""
    of = [r for r in records() if (r["critic"], r["noise"]) == (name, noise)]
    return {r["seed"]: r["explained_variance"] for r in of}


def plot(noise: str, names: list[str]) -> None:
    """Explained variance of each critic, a dot a seed and a bar for the mean."""
    figure, ax = plt.subplots(figsize=(7, 0.3 * len(names) + 0.8), layout="constrained")
    for place, name in enumerate(names):
        values = list(explained(name, noise).values())
        ax.barh(place, fmean(values), color="#9ecae1")
        ax.plot(values, [place] * len(values), "o", color="#08519c", markersize=4)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_xlabel(f"explained variance of the value, {noise}, policy standing still")
    figure.savefig(HERE / "critics.png", dpi=120)


def main() -> None:
    if not TRUTH.exists():
        make_truth()
    done = {(r["critic"], r["noise"], r["seed"]) for r in records()}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for found in [pool.apply_async(train_seed, (seed, done)) for seed in SEEDS]:
            with RECORDS.open("a") as file:
                file.writelines(json.dumps(record) + "\n" for record in found.get())
    for noise, names in NOISES.items():
        fit = {name: explained(name, noise) for name in names}
        for name in names:
            of = [r for r in records() if (r["critic"], r["noise"]) == (name, noise)]
            row = [f"{noise:9} {name:28}"]
            for key in ("explained_variance", "w1", "crps_skill", "implied_w1", "implied_skill"):
                values = [r[key] for r in of]
                low, high = student_interval(values)
                row.append(f"{key} {fmean(values):.3f} [{low:.3f}, {high:.3f}]")
            low, high = paired_difference(fit[name], fit["dfpo-mean"]).student
            row.append(f"above dfpo [{low:+.3f}, {high:+.3f}]")
            print("  ".join(row), f"{len(of)} seeds")
    plot("flip=0.3", NOISES["flip=0.3"])


if __name__ == "__main__":
    main()
