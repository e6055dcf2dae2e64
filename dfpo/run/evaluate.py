"""Accuracy or reward of a policy on held-out prompts, noise-free, per domain and split."""

from __future__ import annotations

from statistics import fmean

import torch
from tabulate import tabulate
from torch import Tensor

from dfpo.config import Config
from dfpo.config.draws import Draws, Stream
from dfpo.rewards.functions import Reward
from dfpo.rollout.play import play
from dfpo.rollout.policy import decode
from dfpo.rollout.processes import Processes
from dfpo.rollout.sampler import Sampler
from dfpo.run.bars import bar
from dfpo.tasks.source import Held, Row

# domain -> split -> "prompts" (scored ones), and "sampled" (temperature 1) and "greedy": mean
# reward, each with its standard error "<mode>_se"
Scores = dict[str, dict[str, dict[str, float]]]
MODES = ("sampled", "greedy")
SPLITS = {"id": "in domain", "ood": "out of domain", "train": "on training prompts"}


def evaluate(
    sampler: Sampler,
    held_out: Held,
    reward: Reward,
    config: Config,
) -> Scores:
    """One answer per prompt and mode; the draws are the same for every policy and run."""
    flat = [row for splits in held_out.values() for split in splits.values() for row in split]
    by_mode = {mode: _rewards(sampler, flat, reward, config, mode) for mode in MODES}
    scores: Scores = {}
    start = 0

    for domain, splits in held_out.items():
        for split, chosen in splits.items():
            part = slice(start, start + len(chosen))
            start = part.stop
            if chosen:
                cell = _cell({mode: values[part] for mode, values in by_mode.items()})
                scores.setdefault(domain, {})[split] = cell

    return scores


def _cell(by_mode: dict[str, Tensor]) -> dict[str, float]:
    cell: dict[str, float] = {}
    for mode, values in by_mode.items():
        kept = values[values.isfinite()].double()
        cell[mode] = float(kept.mean())
        cell[f"{mode}_se"] = float(kept.std() / len(kept) ** 0.5) if len(kept) > 1 else 0.0
        cell["prompts"] = len(kept)
    return cell


def average(scores: Scores, split: str, mode: str = "sampled") -> float:
    """Plain mean over the domains that have the split."""
    return fmean(domain[split][mode] for domain in scores.values() if split in domain)


def average_error(scores: Scores, split: str, mode: str = "sampled") -> float:
    """Standard error of that mean; domains are independent."""
    errors = [d[split][f"{mode}_se"] for d in scores.values() if split in d]
    return sum(e**2 for e in errors) ** 0.5 / len(errors)


def splits_of(scores: Scores) -> list[str]:
    return [split for split in SPLITS if any(split in domain for domain in scores.values())]


def averages(scores: Scores) -> dict[str, float]:
    """Per split: mean over domains, sampled and "_greedy", each with its "_se"."""
    means = {}
    for split in splits_of(scores):
        for mode, suffix in (("sampled", ""), ("greedy", "_greedy")):
            means[f"{split}{suffix}"] = average(scores, split, mode)
            means[f"{split}{suffix}_se"] = average_error(scores, split, mode)
    return means


def score_table(columns: dict[str, Scores]) -> str:
    """Mean ± standard error per domain and split, sampled and greedy, one pair of columns for
    each of the named scores."""
    first = next(iter(columns.values()))
    lines = []
    for split in splits_of(first):
        names = [name for name in first if split in first[name]]
        for name in [*names, "mean"] if len(names) > 1 else names:
            line = [SPLITS[split], name]
            for mode in MODES:
                for scores in columns.values():
                    if name == "mean":
                        value = average(scores, split, mode)
                        error = average_error(scores, split, mode)
                    else:
                        cell = scores[name][split]
                        value, error = cell[mode], cell[f"{mode}_se"]
                    line.append(f"{value:.3f} ± {error:.3f}")
            lines.append(line)

    labels = [f"{m} {c}".strip() for m in ("T=1", "greedy") for c in columns]
    return tabulate(lines, headers=["", "domain", *labels], disable_numparse=True)


def _rewards(
    sampler: Sampler,
    rows: list[Row],
    reward: Reward,
    config: Config,
    mode: str,
) -> Tensor:  # [N], NaN where an answer got no reward
    rewards = [torch.empty(0)]
    length, size = config.rollout.max_new_tokens, config.eval.batch_size
    starts = range(0, len(rows), size)
    for start in bar(
        starts,
        desc=f"evaluate {mode}",
        unit="batch",
        leave=False,
        disable=not Processes.here().leads,
    ):
        chunk = rows[start : start + size]
        draws = None
        if mode == "sampled":
            ids = torch.arange(start, start + len(chunk), device=sampler.policy.device)
            draws = Draws(config.eval.seed, Stream.EVALUATION, 0, ids)
        rewards.append(answer(sampler, chunk, reward, length, draws)[1])

    return torch.cat(rewards)


def answer(
    sampler: Sampler,
    rows: list[Row],
    reward: Reward,
    length: int,
    draws: Draws | None,
) -> tuple[list[str], Tensor]:
    """One answer to each row, greedy without draws, and its reward, [N]."""
    samples, rows = play(sampler, rows, length, draws=draws)
    completions, token_ids = decode(sampler.tokenizer, samples)
    return completions, reward(rows, completions, token_ids).values
