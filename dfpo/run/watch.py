"""Evaluations while a run trains: their metrics, the best policy so far, and when to stop.

An evaluation draws from streams of its own and leaves every random state as it was, so that a run
trains the same with and without it. What is kept of it is in the checkpoint of its step: a resumed
run judges as if it had never stopped.
"""

from __future__ import annotations

import os
import shutil
import time

from dfpo.config import Config
from dfpo.rollout.processes import Processes
from dfpo.rollout.sampler import Sampler
from dfpo.run import checkpoint
from dfpo.run.evaluate import Scores, averages, evaluate, numbers_of
from dfpo.run.progress import Progress
from dfpo.run.records import write_json
from dfpo.run.setup import Setup

BEST = "best"  # a folder of the run


def evaluate_apart(setup: Setup, sampler: Sampler) -> Scores:
    """Scores on the held-out prompts; training's random states are as before."""
    with checkpoint.own_draws(setup.generator, setup.config.eval.seed):
        return evaluate(sampler, setup.source.held_out, setup.reward, setup.config)


def evaluates_now(progress: Progress, config: Config) -> bool:
    """Whether the step just done is one after which a run is evaluated: the last one is."""
    every = config.eval.every
    return bool(every) and (progress.step % every == 0 or progress.step == config.steps)


def look(setup: Setup, progress: Progress) -> dict[str, float]:
    """Evaluates the policy as it is now and judges it; the metrics of that."""
    started = time.perf_counter()
    scores = evaluate_apart(setup, setup.sampler)
    progress.latest, progress.evaluated = scores, progress.step
    judge(setup, progress, scores)
    return metrics_of(scores) | {"perf/evaluation_seconds": time.perf_counter() - started}


def metrics_of(scores: Scores) -> dict[str, float]:
    """Means over domains as ``eval/<split>``, those of a domain as ``eval/<domain>/<split>``; each
    also greedy and with its standard error."""
    metrics = {f"eval/{name}": value for name, value in averages(scores).items()}
    for domain, splits in scores.items():
        for split, cell in splits.items():
            own = numbers_of(cell)
            metrics |= {f"eval/{domain}/{split}{name}": value for name, value in own.items()}
    return metrics


def judge(setup: Setup, progress: Progress, scores: Scores) -> None:
    """Counts whether the policy is better than any before; with ``keep`` best, writes it then."""
    config = setup.config
    value = metrics_of(scores)[config.eval.metric]
    if progress.best is not None and not value > progress.best:
        progress.stale += 1
        return

    progress.best, progress.best_step, progress.stale = value, progress.step, 0
    if config.keep == BEST:
        models = checkpoint.gather_models(setup)
        Processes.here().from_lead(lambda: write_best(setup, progress, models))


def write_best(setup: Setup, progress: Progress, models: checkpoint.Models) -> None:
    """Beside and renamed, as a checkpoint is. It stands before the checkpoint of its step: a run
    that is killed in between takes the step again and writes the same."""
    folder, partial = setup.run / BEST, setup.run / f".{BEST}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    checkpoint.write_models(partial, setup, models)
    write_json(partial / "score.json", score_of(progress, setup.config))
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(partial, folder)


def score_of(progress: Progress, config: Config) -> dict[str, float | str | int | None]:
    """By what, how good and when the best policy was."""
    return {"metric": config.eval.metric, "value": progress.best, "step": progress.best_step}


def has_stopped_gaining(progress: Progress, config: Config) -> bool:
    return bool(config.eval.patience) and progress.stale >= config.eval.patience
