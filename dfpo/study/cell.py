"""One cell of a comparison in a process of its own: a run of ``dfpo train`` and its result."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import sys
import threading
from importlib import metadata
from multiprocessing import parent_process
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml

import dfpo
import dfpo_kernels
from dfpo.config import build_config, load_yaml, stored_settings
from dfpo.rollout.collect import collect
from dfpo.run import checkpoint
from dfpo.run.evaluate import Scores
from dfpo.run.records import is_complete, read_metrics, replace_text, write_json
from dfpo.run.setup import set_up
from dfpo.run.stop import exit_status
from dfpo.run.train import train
from dfpo.study.recipe import Cell, Validation
from dfpo.study.statistics import area, collapsed

LAST = 0.1  # share of the steps, the last ones, over which a noisy metric is averaged


def code_version() -> str:
    """The package's version and a digest of the code that ran."""
    digest = hashlib.sha256()
    for package in (Path(dfpo.__file__).parent, Path(dfpo_kernels.__file__).parent):
        for path in sorted([*package.rglob("*.py"), *package.glob("*.so")]):
            digest.update(path.read_bytes())
    return f"{metadata.version('dfpo')}+{digest.hexdigest()[:8]}"


# Of the code as it was loaded, whatever is edited while cells run.
VERSION = code_version()


def train_cell(cell: Cell) -> None:
    """Trains the cell, from its checkpoint if it has one, and writes its result. Ends the process
    with the exit status of ``dfpo train``."""
    # Ctrl-C reaches the comparison alone, which tells its cells once.
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log = cell.run.with_suffix(".log").open("a", encoding="utf-8")
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)

    # A cell of a killed comparison may be alive a moment longer; two must not train one run.
    fcntl.flock(log, fcntl.LOCK_EX)
    status = exit_status("dfpo train", lambda: start_or_resume(cell))
    if status == 0:
        result = cell_result(cell)
        if cell.validation:
            result["validation"] = validate(cell.run, cell.validation)
        write_json(cell.result, result)

    sys.exit(status)


def start_or_resume(cell: Cell) -> None:
    """``dfpo train`` with the cell's settings, or ``dfpo train --resume`` where it was begun."""
    if not (cell.run / "config.yaml").is_file():
        place = {"runs_dir": str(cell.run.parent), "name": cell.run.name}
        train(build_config(load_yaml(settings_file(cell)) | place))
        return
    config = build_config(stored_settings("resume", cell.run))
    if not is_complete(cell.run, config):
        train(config, cell.run)


def _end_with_parent() -> None:
    """A comparison that was killed leaves nothing at work: its cells would meet those of the next.
    They go on from their checkpoints."""
    parent_process().join()
    os._exit(1)


def settings_file(cell: Cell) -> Path:
    return cell.run.with_suffix(".yaml")


def write_settings(cell: Cell) -> None:
    path = settings_file(cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, yaml.safe_dump(cell.settings, sort_keys=False))


def cell_result(cell: Cell) -> dict[str, Any]:
    """What came of a finished cell: final values, never best ones. ``cost`` alone depends on the
    machine."""
    summary = json.loads((cell.run / "summary.json").read_text(encoding="utf-8"))
    metrics = read_metrics(cell.run)
    config = build_config(stored_settings("run", cell.run))
    benchmarks = _benchmarks(summary["domains"])
    before, after = (benchmark_means(benchmarks, when) for when in ("before", "after"))
    fell = bool(benchmarks) and collapsed(before["all"], after["all"], config.reward.low)
    updates = sum("loss/policy" in m for m in metrics)
    rewards = [m.get("reward/clean") for m in metrics]

    return {
        "domain": cell.domain,
        "noise": cell.noise,
        "arm": cell.arm,
        "seed": cell.seed,
        "algorithm": config.algorithm,
        "settings": cell.varied,
        "base": cell.base,
        "metric": summary["metric"],
        "before": before,
        "after": after,
        "benchmarks": benchmarks,
        "collapsed": fell,
        "kl": _late(metrics, "kl"),
        "response_length": _late(metrics, "response_length"),
        "training_reward_area": _number(area(rewards)),
        "curve": [None if value is None else _number(round(value, 4)) for value in rewards],
        "training_reward_noisy": _late(metrics, "reward/noisy"),
        "answers": len(metrics) * config.rollout.prompts * config.rollout.samples,
        "tokens": summary["training"]["tokens"],
        "policy_updates": updates * config.policy.epochs * config.policy.minibatches,
        "version": VERSION,
        "cost": {key: summary[key] for key in ("cpu_seconds", "seconds", "peak_memory_gb")},
    }


def _benchmarks(domains: dict[str, dict[str, Scores]]) -> dict[str, dict[str, float]]:
    """ "domain/split" -> prompts, and "<before or after>[_greedy][_se]"."""
    benchmarks: dict[str, dict[str, float]] = {}
    for domain, times in domains.items():
        for split in times["after"]:
            cell = benchmarks[f"{domain}/{split}"] = {"prompts": times["after"][split]["prompts"]}
            for when in ("before", "after"):
                scores = times[when][split]
                for mode, suffix in (("sampled", ""), ("greedy", "_greedy")):
                    cell[f"{when}{suffix}"] = _number(scores[mode])
                    cell[f"{when}{suffix}_se"] = _number(scores[f"{mode}_se"])

    return benchmarks


def benchmark_means(benchmarks: dict[str, dict[str, float]], when: str) -> dict[str, float]:
    """Plain means over benchmarks: "id", "ood" (every split that is neither "id" nor "train"),
    "all", each also "_greedy"; without the key where there is no such benchmark. A benchmark that
    is not finite makes its averages NaN."""
    groups = {
        "id": [b for b in benchmarks if b.endswith(("/id", "/train"))],
        "ood": [b for b in benchmarks if not b.endswith(("/id", "/train"))],
        "all": list(benchmarks),
    }
    means = {}

    for mode in ("", "_greedy"):
        for group, names in groups.items():
            values = [benchmarks[name][when + mode] for name in names]
            if values:
                means[group + mode] = math.nan if None in values else fmean(values)

    return means


def validate(run: Path, validation: Validation) -> dict[str, float]:
    """Mean noisy reward of the run's final policy on training prompts of another seed.

    Reward and noise are those that training saw, so nothing is used that a user without clean
    rewards would not have.
    """
    settings = stored_settings("run", run)
    setup = set_up(build_config(settings | {"seed": validation.seed}), run)
    checkpoint.restore(setup)
    told = []
    count = setup.config.rollout.prompts

    for step in range(math.ceil(validation.prompts / count)):
        rollout = collect(
            setup.sampler, setup.first, setup.source.training(step, count),
            reward=setup.reward, noise=setup.noise, config=setup.config, step=step,
        )  # fmt: skip
        told.append(rollout.rewards)

    rewards = torch.cat(told).double()
    error = float(rewards.std() / len(rewards) ** 0.5)
    return {"noisy": float(rewards.mean()), "noisy_se": error, "answers": len(rewards)}


def _late(metrics: list[dict[str, Any]], key: str) -> float | None:
    values = [m[key] for m in metrics if m.get(key) is not None]
    return fmean(values[-max(1, round(LAST * len(metrics))) :]) if values else None


def _number(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None
