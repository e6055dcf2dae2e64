"""What a run says of itself: at its start, beside its bar, and at its end."""

from __future__ import annotations

import os
import resource
from typing import Any

import torch

from dfpo.config import Config
from dfpo.config.rules import value_range
from dfpo.rollout.adapters import root_of
from dfpo.rollout.processes import Processes
from dfpo.run import watch
from dfpo.run.evaluate import Scores, averages, score_table
from dfpo.run.progress import Progress
from dfpo.run.setup import Setup

# A checkpoint that takes more of a step than this is worth a word.
SLOW_CHECKPOINT = 0.25


def describe_start(setup: Setup, progress: Progress) -> str:
    """The opening line: what trains on what, and from where it goes on."""
    config, policy = setup.config, setup.policy
    text = (
        f"{setup.run}: {config.algorithm}, {type(root_of(policy)).__name__} of "
        f"{policy.num_parameters() / 1e6:.2f} M parameters on {policy.device}{_others()}, "
        f"noise {config.noise}"
    )
    low, high = value_range(config)
    if config.reward.space != "raw":
        text += f", rewards through {config.reward.space}"
    elif (low, high) != (0.0, 1.0):
        text += f", rewards scaled by [{low:g}, {high:g}]"
    if progress.step:
        text += f"; continues after {progress.step} of {config.steps} steps"

    return text


def _others() -> str:
    count = Processes.here().count
    return f" in each of {count} processes" if count > 1 else ""


def headline(record: dict[str, float], progress: Progress, config: Config) -> dict[str, str]:
    """What the progress bar shows."""
    shown = {
        "reward": record.get("reward/noisy"),
        "clean": record.get("reward/clean"),
        "kl": record.get("kl"),
    }
    words = {name: f"{value:.3g}" for name, value in shown.items() if value is not None}
    if config.eval.metric in record:
        words[config.eval.metric] = f"{record[config.eval.metric]:.3f}"
    if progress.unscored:
        words["unscored"] = str(progress.unscored)
    if progress.invalid:
        words["invalid"] = f"{progress.invalid} ({progress.problem})"

    return words


def slow_checkpoint(seconds: float, record: dict[str, float], config: Config) -> str | None:
    """A hint where ``seconds`` of a checkpoint are much of the steps between two of them."""
    if seconds < SLOW_CHECKPOINT * record["perf/seconds"] * config.checkpoint_every:
        return None
    return (
        f"a checkpoint takes {seconds:.1f} s, a step {record['perf/seconds']:.1f} s: "
        f"--checkpoint-every {4 * config.checkpoint_every} would cost less"
    )


def describe_end(
    setup: Setup, progress: Progress, scores: dict[str, Scores], records: list[dict[str, Any]]
) -> list[str]:
    """The closing lines: an early end, the table, time and memory."""
    config, lines = setup.config, []
    if watch.has_stopped_gaining(progress, config):
        lines.append(
            f"ended after {progress.step} of {config.steps} steps: {progress.stale} evaluations "
            f"without {config.eval.metric} above {progress.best:.3f}, that of step "
            f"{progress.best_step}"
        )
    if scores["after"]:
        lines.append(score_table(scores, config.eval.temperature))
    lines.append(
        f"{progress.seconds:.0f} s, {progress.cpu_seconds:.0f} CPU-s, "
        f"{tokens_per_second(records):.0f} tokens/s in training, {peak_memory():.1f} GB at "
        f"most; {'report.html, ' if config.plots else ''}policy and metrics in {setup.run}"
    )
    return lines


def run_summary(
    setup: Setup, progress: Progress, after: Scores, records: list[dict[str, Any]]
) -> dict[str, Any]:
    """Means at temperature 1 unless the key says greedy; averages over domains."""
    before, config = progress.before, setup.config
    judged = {}
    if config.eval.every:
        judged["best"] = watch.score_of(progress, config)
        judged["evaluations_without_gain"] = progress.stale
    rewards = [m["reward/clean"] for m in records if m.get("reward/clean") is not None]
    tenth = max(1, len(rewards) // 10)
    return {
        "metric": setup.source.metric,
        "before": averages(before),
        "after": averages(after),
        "domains": {name: {"before": before[name], "after": after[name]} for name in before},
        "training": {
            "steps": progress.step,
            "tokens": progress.tokens,
            "tokens_per_second": tokens_per_second(records),
            "reward_first_tenth": sum(rewards[:tenth]) / tenth if rewards else None,
            "reward_last_tenth": sum(rewards[-tenth:]) / tenth if rewards else None,
            "unscored": progress.unscored,
            "invalid": progress.invalid,
            **judged,
        },
        "seconds": progress.seconds,
        "cpu_seconds": progress.cpu_seconds,
        "peak_memory_gb": peak_memory(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def tokens_per_second(records: list[dict[str, Any]]) -> float:
    seconds = sum(m["perf/seconds"] for m in records)
    return sum(m["tokens"] for m in records) / seconds if seconds else 0.0


def peak_memory() -> float:
    """Largest resident size of this process, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
