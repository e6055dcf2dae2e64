"""What a policy makes of the predicted distribution: ideas of findings.md, on development seeds.

    python results/leads/policies.py

trains what is not yet in policies.jsonl beside it, two runs at a time, and prints the differences
to ``dfpo-mean`` seed by seed. Each idea replaces one piece of the trainer in its own process.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

import dfpo.run.setup
import dfpo.run.train
from dfpo.config import Config, build_config
from dfpo.config.types import CriticTargets, Estimate, Rollout, Targets
from dfpo.method.advantages import Returns
from dfpo.method.targets import compute_targets, whiten
from dfpo.rollout.collect import last_tokens
from dfpo.run.records import read_metrics
from dfpo.study.statistics import paired_difference

HERE = Path(__file__).parent
RECORDS = HERE / "policies.jsonl"
SEEDS = (100, 101, 102)  # of no comparison
# What seed 100 made look promising, and what it must be compared with, on the others too.
AGAIN = (
    "dfpo-mean", "ppo", "rank", "lam-by-spread", "support", "lam-1", "clipped", "winsorised",
    "range",
)  # fmt: skip
NOISES = ("flip=0.3", "outliers=0.1")
SETTINGS = {
    "algorithm": "dfpo-mean", "task": "hard", "steps": 80, "critic.warmup_steps": 10,
    "policy.learning_rate": 1e-4,
    "eval.prompts": 100, "eval.seed": 1000, "eval.examples": 0, "plots": False,
    "checkpoint_every": 1000, "threads": 1,
}  # fmt: skip

Compute = Callable[[Rollout, Estimate, Config, int], Targets]


def with_advantages(make: Callable[[Targets, Rollout, Estimate, Config], Tensor]) -> Compute:
    """Targets with other advantages [B, T], whitened."""

    def compute(rollout: Rollout, estimate: Estimate, config: Config, step: int) -> Targets:
        targets = compute_targets(rollout, estimate, config, step)
        raw = make(targets, rollout, estimate, config)
        white = whiten(raw, rollout.samples.mask)
        return dataclasses.replace(targets, raw_advantages=raw, advantages=white)

    return compute


def with_rewards(make: Callable[[Rollout, Tensor], Tensor]) -> Compute:
    """Targets of other rewards [B], made from the values before each answer's last token [B, Q]."""

    def compute(rollout: Rollout, estimate: Estimate, config: Config, step: int) -> Targets:
        last = last_tokens(rollout.samples.mask).unsqueeze(-1)
        distribution = torch.where(last, estimate.quantiles, 0.0).sum(1)
        rollout = dataclasses.replace(rollout, rewards=make(rollout, distribution))
        return compute_targets(rollout, estimate, config, step)

    return compute


def lam_by_spread(targets: Targets, rollout: Rollout, estimate: Estimate, config: Config) -> Tensor:
    """GAE whose trace is .9 where the distribution is a point, 1 where it is as wide as it gets."""
    rewards = Returns(rollout, rollout.rewards, estimate, config).token_rewards
    mask, value = rollout.samples.mask, estimate.quantiles.mean(-1)
    width = config.reward.high - config.reward.low
    lam = 0.9 + 0.1 * (2 * targets.critic.spread / width).clamp_max(1)
    found, following, trace = torch.zeros_like(value), 0.0, 0.0
    for t in reversed(range(mask.shape[1])):
        lam_next = lam[:, t + 1] if t + 1 < mask.shape[1] else 1.0
        here = rewards[:, t] + following - value[:, t] + lam_next * trace
        following = torch.where(mask[:, t], value[:, t], 0.0)
        trace = torch.where(mask[:, t], here, 0.0)
        found[:, t] = trace
    return found


def by_certainty(targets: Targets, rollout: Rollout, estimate: Estimate, config: Config) -> Tensor:
    """Advantages weighted by 1 / (spread + a tenth of the reward's range)."""
    width = config.reward.high - config.reward.low
    return targets.raw_advantages / (targets.critic.spread / width + 0.1)


def to_support(rollout: Rollout, distribution: Tensor) -> Tensor:
    """Rewards cut to the predicted support."""
    return rollout.rewards.clamp(distribution.amin(-1), distribution.amax(-1))


def towards_value(rollout: Rollout, distribution: Tensor) -> Tensor:
    """Half of each reward is replaced by the value of its whole answer."""
    return (rollout.rewards + distribution.mean(-1)) / 2


class TwoCritics(nn.Module):
    """Two critics of one seed each; the distribution is the mean of both, quantile by quantile."""

    def __init__(self, critics: list[nn.Module]) -> None:
        super().__init__()
        self.critics = nn.ModuleList(critics)

    def parts(self) -> list[list[nn.Parameter]]:
        return [part for critic in self.critics for part in critic.parts()]

    def estimate(self, *arguments: Any) -> Estimate:
        found = [critic.estimate(*arguments) for critic in self.critics]
        quantiles = sum(estimate.quantiles for estimate in found) / len(found)
        final = sum(estimate.final for estimate in found) / len(found)
        return Estimate(quantiles=quantiles, final=final)

    def noise(self, answers: int, generator: torch.Generator) -> None:
        return None

    def prepare(self, targets: CriticTargets, *arguments: Any) -> CriticTargets:
        return self.critics[0].prepare(targets, *arguments)

    def loss(self, *arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
        found = [critic.loss(*arguments) for critic in self.critics]
        return sum(loss for loss, _ in found), found[0][1]


def two_critics(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def built(policy: nn.Module, config: Config) -> nn.Module:
        other = dataclasses.replace(config, seed=config.seed + 10_000)
        return TwoCritics([build(policy, config), build(policy, other)])

    return built


# name -> (what replaces compute_targets, settings)
LEADS: dict[str, tuple[Compute | None, dict[str, Any]]] = {
    "dfpo-mean": (None, {}),
    "ppo": (None, {"algorithm": "ppo"}),
    "joint": (None, {"critic.linear_mean": False}),
    "rank": (None, {"target.advantage": "rank"}),
    "lam-by-spread": (with_advantages(lam_by_spread), {}),
    "by-certainty": (with_advantages(by_certainty), {}),
    "support": (with_rewards(to_support), {}),
    "range": (None, {"reward.clip": True}),
    "half-value": (with_rewards(towards_value), {}),
    "two-critics": (None, {}),
    "shared-noise": (None, {"critic.linear_mean": False, "critic.coupling": "shared_noise"}),
    "lam-1": (None, {"target.lam": 1.0}),
    "clipped": (None, {"target.advantage_clip": 0.5}),
    "winsorised": (None, {"target.winsorise": 0.75}),
}


def train_one(job: tuple[str, str, int]) -> dict[str, Any]:
    lead, noise, seed = job
    compute, settings = LEADS[lead]
    if compute is not None:
        dfpo.run.train.compute_targets = compute
    if lead == "two-critics":
        dfpo.run.setup.build_critic = two_critics(dfpo.run.setup.build_critic)
    runs = HERE / "runs"
    name = f"{lead}-{noise}-{seed}".replace("=", "")
    shutil.rmtree(runs / name, ignore_errors=True)
    place = {"runs_dir": str(runs), "name": name, "noise": noise, "seed": seed}
    run = dfpo.run.train.train(build_config({**SETTINGS, **settings, **place}))
    summary = json.loads((run / "summary.json").read_text())
    rewards = [m["reward/clean"] for m in read_metrics(run)]
    after = summary["after"]
    shutil.rmtree(run)
    return {
        "lead": lead, "noise": noise, "seed": seed, "id": after["id"], "ood": after["ood"],
        "all": (after["id"] + after["ood"]) / 2, "area": fmean(rewards),
        "cpu_seconds": summary["cpu_seconds"],
    }  # fmt: skip


def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RECORDS.open()] if RECORDS.exists() else []


def main() -> None:
    done = {(r["lead"], r["noise"], r["seed"]) for r in records()}
    grid = [
        (lead, noise, seed)
        for seed in SEEDS
        for noise in NOISES
        for lead in (LEADS if seed == SEEDS[0] else AGAIN)
    ]
    jobs = [job for job in grid if job not in done]
    # A process a run: what it replaces is gone with it.
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        for record in pool.imap_unordered(train_one, jobs, chunksize=1):
            with RECORDS.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(record, file=sys.stderr, flush=True)
    for noise in NOISES:
        values = {
            lead: {r["seed"]: r for r in records() if (r["lead"], r["noise"]) == (lead, noise)}
            for lead in LEADS
        }
        for lead, found in values.items():
            row = [f"{noise:14}{lead:16}"]
            for key in ("id", "ood"):
                level = {seed: r[key] for seed, r in found.items()}
                gap = paired_difference(
                    level, {seed: r[key] for seed, r in values["dfpo-mean"].items()}
                )
                low, high = gap.student
                row.append(f"{key} {fmean(level.values()):.3f} {gap.mean:+.3f}")
                row.append(f"[{low:+.3f}, {high:+.3f}]")
            print("  ".join(row), f"{len(found)} seeds")


if __name__ == "__main__":
    main()
