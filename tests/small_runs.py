"""Directories of runs as training leaves them, written without training."""

from __future__ import annotations

import dataclasses
import json

from dfpo.config import build_config, to_yaml
from dfpo.run.kept import KeptAnswer, write

ANSWER = KeptAnswer(
    step=0, sample=0, prompt="1 plus 2", domain="math", expected="3", answer="it is 4",
    truncated=False, told=1.0, clean=0.0, token_ids=[5, 6, 7, 2],
    tokens=["it", "is", "4", "<eos>"], advantages=[0.5, -0.25, -1.0, 0.125],
    values=[0.5, 0.625, 0.125, 0.25], spreads=[0.5, 0.5, 0.25, 0.25],
    quantiles=[[0.0, 0.25, 0.75, 1.0], [0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.25, 0.25],
               [0.0, 0.25, 0.25, 0.5]],
    final=[0.0, 0.0, 0.0, 0.0],
)  # fmt: skip


def answer(**changed):
    return dataclasses.replace(ANSWER, **changed)


def answers_of(step):
    """A wrong one that was told to be right, a right one, and one of another domain."""
    first = 10 * step
    return [
        answer(step=step, sample=first),
        answer(step=step, sample=first + 1, answer="it is 3", told=1.0, clean=1.0,
               tokens=["it", "is", "3", "<eos>"]),
        answer(step=step, sample=first + 2, domain="science", prompt="what is work ?",
               expected=None, answer="force", told=0.0, clean=0.0),
    ]  # fmt: skip


def make_run(folder, kept=None, metrics=None, **settings):
    """A run of 10 steps, all of which have metrics; the answers of ``kept`` by step, by default of
    steps 0, 4 and 9."""
    folder.mkdir(parents=True)
    config = build_config(
        {"steps": 10, "noise": "flip=0.3", "reward.low": 0, "reward.high": 1} | settings
    )
    (folder / "config.yaml").write_text(to_yaml(config))
    if metrics is None:
        metrics = [
            {"reward/clean": 0.1 * i, "kl": 0.01 * i, "perf/seconds": 1.0} for i in range(10)
        ]
    lines = [json.dumps({"step": step, **values}) + "\n" for step, values in enumerate(metrics)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    kept = {step: answers_of(step) for step in (0, 4, 9)} if kept is None else kept
    for step, rows in kept.items():
        write(folder, step, rows)
    return folder


def finish(run, steps=10):
    """The summary of a run that has come to its end."""
    scores = {"id": 0.25, "id_se": 0.125, "ood": 0.5}
    summary = {"before": scores, "after": scores | {"id": 0.75}, "training": {"steps": steps}}
    (run / "summary.json").write_text(json.dumps(summary | {"seconds": 90.0}))
    return run
