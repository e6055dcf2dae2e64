"""``dfpo eval``: a run's policy, or any model, on held-out prompts."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dfpo.config import Config, ConfigError
from dfpo.config.types import Prompt, Row
from dfpo.rollout.functions import RolloutError, load_rollout
from dfpo.rollout.sampler import Sampler
from dfpo.rollout.tokens import encode
from dfpo.run import checkpoint
from dfpo.run.evaluate import Scores, answer, averages, evaluate, score_table
from dfpo.run.given import Given
from dfpo.run.model_checks import check_model
from dfpo.run.setup import NOTHING, load_parts, micro_tokens, sampled_tokens
from dfpo.tasks.source import Source


def evaluate_model(
    target: Path, config: Config, show: int = 0, given: Given = NOTHING
) -> tuple[str, str, Scores, list[dict[str, Any]]]:
    """(policy, metric, scores, ``show`` greedy answers) of ``target``: its final policy if it is a
    finished run, that of its last checkpoint if it is an unfinished one, the model itself if it is
    a model directory."""
    if (target / "config.yaml").is_file():
        config = dataclasses.replace(config, model=str(policy_of(target)))
    # Nothing is trained here, so an adapter is worked into its model and none is put on it.
    config = dataclasses.replace(config, lora=dataclasses.replace(config.lora, rank=0))
    policy, tokenizer, source, reward = load_parts(config, given)
    function = load_rollout(config, given.rollout)
    tokens = sampled_tokens(micro_tokens(config, policy), policy.device.type)
    sampler = Sampler.of(policy, tokenizer, micro_tokens=tokens, function=function)
    if not source.held_out:
        raise ConfigError("eval.prompts: is 0, must be at least 1 to evaluate")
    check_model(sampler, encode(tokenizer, next(_rows(source))["prompt"]))
    try:
        scores = evaluate(sampler, source.held_out, reward, config)
    except RolloutError as error:
        raise ConfigError(str(error)) from error

    rows = list(_rows(source))
    shown = []
    if show:
        texts, rewards = answer(sampler, rows[:show], reward, config, None)
        for row, text, value in zip(rows, texts, rewards.tolist(), strict=False):
            score = None if math.isnan(value) else value
            shown.append({"prompt": row["prompt"], "answer": text, "reward": score})

    return config.model, source.metric, scores, shown


def evaluate_target(target: Path, config: Config, show: int, as_json: bool) -> str:
    """The report of ``dfpo eval``."""
    policy, metric, scores, shown = evaluate_model(target, config, show)
    if as_json:
        report = {
            "target": str(target),
            "policy": policy,
            "metric": metric,
            "mean": averages(scores),
            "domains": scores,
        }
        return json.dumps(report | ({"answers": shown} if show else {}), indent=2)

    temperature = config.eval.temperature
    lines = [f"{policy}: {metric}, mean ± standard error", score_table({"": scores}, temperature)]
    for line in shown:
        lines += ["", f"prompt: {_last_text(line['prompt'])}"]
        lines += [f"greedy answer (reward {line['reward']}): {line['answer']}"]

    return "\n".join(lines)


def _rows(source: Source) -> Iterator[Row]:
    """All that are held out, of each domain and split in turn."""
    parts = [part for splits in source.held_out.values() for part in splits.values()]
    for turn in zip_longest(*parts):
        yield from (row for row in turn if row is not None)


def _last_text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def policy_of(run: Path) -> Path:
    """Whichever is newer of the run's final policy and its last checkpoint."""
    last = checkpoint.newest(run)
    if (run / "summary.json").is_file() and (run / "policy").is_dir():
        return run / "policy"
    if last is None:
        raise ConfigError(f"target: {run} holds neither a policy nor a checkpoint yet")
    return last / "policy"
