"""Accuracy of a policy on held-out prompts, clean rewards, per domain and split."""

from __future__ import annotations

from statistics import mean

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dfpo.config import Config
from dfpo.data import Row, columns
from dfpo.draws import Stream, uniforms
from dfpo.policy import decode, generate
from dfpo.rollout import RewardFunction

# domain -> split -> "sampled" (temperature 1) and "greedy" -> accuracy in [0, 1]
Scores = dict[str, dict[str, dict[str, float]]]
MODES = ("sampled", "greedy")


def evaluate(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: dict[str, dict[str, list[Row]]],
    reward: RewardFunction,
    config: Config,
) -> Scores:
    """One answer per prompt and mode; the draws are the same for every policy and run."""
    flat = [row for splits in rows.values() for split in splits.values() for row in split]
    rewards = {mode: _rewards(policy, tokenizer, flat, reward, config, mode) for mode in MODES}
    scores: Scores = {}
    start = 0
    for domain, splits in rows.items():
        scores[domain] = {}
        for split, chosen in splits.items():
            stop = start + len(chosen)
            scores[domain][split] = {mode: mean(rewards[mode][start:stop]) for mode in MODES}
            start = stop
    return scores


def average(scores: Scores, split: str, mode: str = "sampled") -> float:
    """Plain mean over domains."""
    return mean(domain[split][mode] for domain in scores.values())


def _rewards(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    reward: RewardFunction,
    config: Config,
    mode: str,
) -> list[float]:
    found: list[float] = []
    length = config.rollout.max_new_tokens
    for start in range(0, len(rows), config.eval.batch_size):
        chunk = rows[start : start + config.eval.batch_size]
        prompts = [row["prompt"] for row in chunk]
        draws = None
        if mode == "sampled":
            ids = torch.arange(start, start + len(chunk), device=policy.device)
            draws = uniforms(config.eval.seed, Stream.EVALUATION, 0, ids, length)
        samples = generate(policy, tokenizer, prompts, length, uniforms=draws)
        completions, token_ids = decode(tokenizer, samples)
        found += reward(
            prompts=prompts, completions=completions, completion_ids=token_ids, **columns(chunk)
        )
    return found
