"""The model card of a run's policy: what it was trained from, on what, by which command, and what
that did to it."""

from __future__ import annotations

import dataclasses
import platform
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from dfpo.config import Config
from dfpo.config.algorithms import ALGORITHMS
from dfpo.config.build import flatten
from dfpo.config.flags import flag_of
from dfpo.config.rules import default_values
from dfpo.run.evaluate import SPLITS, Scores, score_table

LIBRARIES = ("dfpo", "torch", "transformers", "accelerate")
# Where a run is, how it is watched, and what follows from the rest: no part of what it computes.
APART = (
    "name", "runs_dir", "plots", "trackers", "quiet", "push_to_hub", "checkpoint_every",
    "checkpoint_keep", "device", "threads",
)  # fmt: skip
CARD = """\
---
{front}---
# {title}

A language model after {steps} steps of {algorithm} ({summary}) by
[DFPO](https://arxiv.org/abs/2602.05890)'s trainer.

| | |
| --- | --- |
{facts}

```bash
{command}
```

## Before and after

{metric} on held-out prompts, without noise, mean ± standard error:

{table}

## Made with

{versions}, Python {python}. The same command on the same machine gives the same weights, bit for
bit. `config.yaml` of the run holds every setting.
"""


def write_card(
    run: Path, config: Config, summary: dict[str, Any], scores: dict[str, Scores]
) -> None:
    """README.md of ``run/policy``, which model hubs show."""
    (run / "policy" / "README.md").write_text(card(run.name, config, summary, scores), "utf-8")


def card(name: str, config: Config, summary: dict[str, Any], scores: dict[str, Scores]) -> str:
    training, row = summary["training"], ALGORITHMS[config.algorithm]
    libraries = [f"{library} {version(library)}" for library in LIBRARIES]
    return CARD.format(
        front=yaml.safe_dump(front_matter(config), sort_keys=False),
        title=name,
        steps=training["steps"],
        algorithm=config.algorithm,
        summary=row.summary,
        facts="\n".join(f"| {what} | {value} |" for what, value in facts(config, summary)),
        command=command_of(config),
        metric=summary["metric"].capitalize(),
        table=results(config, scores),
        versions=", ".join(libraries),
        python=platform.python_version(),
    )


def front_matter(config: Config) -> dict[str, Any]:
    """What hubs read."""
    return {
        "library_name": "peft" if config.lora.rank else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["dfpo", config.algorithm, "reinforcement-learning"],
    }


def facts(config: Config, summary: dict[str, Any]) -> list[tuple[str, str]]:
    training, reward = summary["training"], config.reward
    functions = ", ".join(reward.functions) or "the task's verifier"
    weights = f", weights {', '.join(map(str, reward.weights))}" if reward.weights else ""
    held_out = config.eval_data or "of the same source"
    shown = [f"{name} {SPLITS[name]}" for name in SPLITS if name in (summary["after"] or {})]
    return [
        ("first model", config.model or "the starting policy that ships with dfpo"),
        ("training prompts", config.data or f"task {config.task or 'suite'}"),
        ("held-out prompts", f"{held_out}{': ' if shown else ''}{', '.join(shown)}"),
        ("reward", f"{functions}{weights}, range [{reward.low:g}, {reward.high:g}]"),
        ("noise on the training reward", config.noise),
        ("sampled", f"{training['tokens']:,} tokens, in {summary['seconds']:.0f} seconds"),
        (
            "answers without a reward",
            f"{training['unscored']} unscored, {training['invalid']} failed",
        ),
    ]  # fmt: skip


def command_of(config: Config) -> str:
    """The settings that are not as in the algorithm's preset or by default, as a command."""
    usual = default_values() | ALGORITHMS[config.algorithm].settings
    words = ["dfpo", "train", "--algorithm", config.algorithm]
    for dotted, value in flatten(dataclasses.asdict(config)):
        if dotted in APART or dotted == "algorithm" or value in (None, usual[dotted]):
            continue
        values = value if isinstance(value, tuple) else [value]
        texts = [str(v).lower() if isinstance(v, bool) else str(v) for v in values]
        words += [flag_of(dotted), *texts]
    return shlex.join(words)


def results(config: Config, scores: dict[str, Scores]) -> str:
    if not any(scores.values()):
        return "not evaluated"
    return score_table(scores, config.eval.temperature, style="github")
