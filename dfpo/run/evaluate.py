"""Accuracy or reward of a policy on held-out prompts, noise-free, per domain and split."""

from __future__ import annotations

import math
from statistics import fmean

import torch
from tabulate import tabulate
from torch import Tensor

from dfpo.config import Config, ConfigError
from dfpo.config.draws import Draws, Stream
from dfpo.rewards.functions import Reward
from dfpo.rollout.decoding import Decoding
from dfpo.rollout.play import play
from dfpo.rollout.sampler import Sampler
from dfpo.rollout.tokens import decode
from dfpo.run.bars import bar, speaks
from dfpo.tasks.source import Held, Row

# domain -> split -> "prompts" (scored ones), "sampled" and "greedy": mean reward, and "pass@k",
# each with its standard error "<mode>_se"
Scores = dict[str, dict[str, dict[str, float]]]
MODES = ("sampled", "greedy")
PASS = "pass@"
SPLITS = {"id": "in domain", "ood": "out of domain", "train": "on training prompts"}


def evaluate(
    sampler: Sampler,
    held_out: Held,
    reward: Reward,
    config: Config,
) -> Scores:
    """A greedy answer to each prompt and ``eval.samples`` sampled ones; the draws are the same for
    every policy and run."""
    flat = [row for splits in held_out.values() for split in splits.values() for row in split]
    by_mode = {mode: _rewards(sampler, flat, reward, config, mode) for mode in MODES}
    scores: Scores = {}
    start = 0

    for domain, splits in held_out.items():
        for split, chosen in splits.items():
            part = slice(start, start + len(chosen))
            start = part.stop
            if chosen:
                cell = _cell({mode: values[part] for mode, values in by_mode.items()}, config)
                scores.setdefault(domain, {})[split] = cell

    return scores


def _cell(by_mode: dict[str, Tensor], config: Config) -> dict[str, float]:  # each [N, S]
    cell: dict[str, float] = {}
    for mode, values in by_mode.items():
        means = values.double().nanmean(-1)  # of each prompt, the unit that errors are over
        kept = means[means.isfinite()]
        cell |= _mean_and_error(mode, kept)
        cell["prompts"] = len(kept)

    sampled = by_mode["sampled"]
    scored, right = sampled.isfinite().sum(-1), (sampled >= config.eval.right).sum(-1)
    for k in config.eval.pass_at:
        counts = [(n, c) for n, c in zip(scored.tolist(), right.tolist(), strict=True) if n >= k]
        estimates = torch.tensor([pass_at_k(n, c, k) for n, c in counts], dtype=torch.float64)
        cell |= _mean_and_error(f"{PASS}{k}", estimates)

    return cell


def _mean_and_error(name: str, values: Tensor) -> dict[str, float]:  # [N]
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else 0.0
    return {name: float(values.mean()), f"{name}_se": error}


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k answers is right, estimated without bias from n answers of which c
    are right: 1 - C(n - c, k) / C(n, k), as a product (Chen et al. 2021, arXiv 2107.03374)."""
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


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
        for mode, suffix in suffixes_of(scores).items():
            means[f"{split}{suffix}"] = average(scores, split, mode)
            means[f"{split}{suffix}_se"] = average_error(scores, split, mode)
    return means


def numbers_of(cell: dict[str, float]) -> dict[str, float]:
    """The same of one domain and split, by suffix."""
    return {
        f"{suffix}{error}": cell[f"{mode}{error}"]
        for mode, suffix in suffixes_of({"": {"": cell}}).items()
        for error in ("", "_se")
    }


def suffixes_of(scores: Scores) -> dict[str, str]:
    """What of an evaluation there is a mean of -> what its name ends in."""
    cells = [cell for splits in scores.values() for cell in splits.values()]
    passes = [n for n in cells[0] if n.startswith(PASS) and not n.endswith("_se")] if cells else []
    return {"sampled": "", "greedy": "_greedy", **{name: f"_{name}" for name in passes}}


def metric_to_judge_by(config: Config, held_out: Held) -> str | None:
    """``eval.metric``, by default the mean of the first split that is held out; None where nothing
    is judged. Raises ConfigError for a name that no evaluation gives."""
    if not config.eval.every:
        return config.eval.metric
    splits = {split for parts in held_out.values() for split, rows in parts.items() if rows}
    means = [f"eval/{split}" for split in SPLITS if split in splits]
    own = [f"eval/{name}/{split}" for name, parts in held_out.items() for split in parts]
    known = [f"{name}{mode}" for name in means + own for mode in ("", "_greedy")]

    wish = config.eval.metric
    if wish is not None and wish not in known:
        raise ConfigError(f"eval.metric: is {wish!r}, must be one of {', '.join(known)}")
    return wish or known[0]


def score_table(columns: dict[str, Scores], temperature: float = 1.0, style: str = "simple") -> str:
    """Mean ± standard error per domain and split, sampled, greedy and pass@k, a column each for
    each of the named scores."""
    first = next(iter(columns.values()))
    modes = {"sampled": f"T={temperature:g}", **{m: m for m in list(suffixes_of(first))[1:]}}
    lines = []
    for split in splits_of(first):
        names = [name for name in first if split in first[name]]
        for name in [*names, "mean"] if len(names) > 1 else names:
            line = [SPLITS[split], name]
            for mode in modes:
                for scores in columns.values():
                    if name == "mean":
                        value = average(scores, split, mode)
                        error = average_error(scores, split, mode)
                    else:
                        cell = scores[name][split]
                        value, error = cell[mode], cell[f"{mode}_se"]
                    line.append(f"{value:.3f} ± {error:.3f}")
            lines.append(line)

    labels = [f"{label} {c}".strip() for label in modes.values() for c in columns]
    return tabulate(lines, headers=["", "domain", *labels], tablefmt=style, disable_numparse=True)


def _rewards(
    sampler: Sampler,
    rows: list[Row],
    reward: Reward,
    config: Config,
    mode: str,
) -> Tensor:  # [N, S], NaN where an answer got no reward
    rewards = [torch.empty(0)]
    settings = config.eval
    samples = settings.samples if mode == "sampled" else 1
    rows = [row for row in rows for _ in range(samples)]

    for start in bar(
        range(0, len(rows), settings.batch_size),
        desc=f"evaluate {mode}",
        unit="chunk",
        leave=False,
        disable=not speaks(config),
    ):
        chunk = rows[start : start + settings.batch_size]
        draws = None
        if mode == "sampled":
            ids = torch.arange(start, start + len(chunk), device=sampler.policy.device)
            draws = Draws(settings.seed, Stream.EVALUATION, 0, ids)
        rewards.append(answer(sampler, chunk, reward, config, draws)[1])

    return torch.cat(rewards).view(-1, samples)


def answer(
    sampler: Sampler,
    rows: list[Row],
    reward: Reward,
    config: Config,
    draws: Draws | None,
) -> tuple[list[str], Tensor]:
    """One answer to each row, greedy without draws, and its reward, [N]."""
    settings = config.eval
    stop = tuple(word.replace("\\n", "\n") for word in settings.stop)
    decoding = Decoding(settings.top_p, settings.top_k, stop)
    samples, rows = play(
        sampler, rows, config.rollout.max_new_tokens,
        draws=draws, temperature=settings.temperature, decoding=decoding,
    )  # fmt: skip
    completions, token_ids = decode(sampler.tokenizer, samples)

    if decoding.stop:
        both = zip(completions, token_ids, strict=True)
        cut = [decoding.cut(sampler.tokenizer, text, ids) for text, ids in both]
        completions, token_ids = [text for text, _ in cut], [ids for _, ids in cut]
    return completions, reward(rows, completions, token_ids).values
