"""Prompts and their columns, as the rollout and the reward function see them.

A source gives the rows of any training step as a pure function of (seed, step), so that a resumed
run goes on where it stood, and the held-out rows of an evaluation.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dfpo import tasks
from dfpo.config import Config, ConfigError
from dfpo.tasks import DOMAINS, SPLITS, problem, reasoning_gym

Row = dict[str, Any]  # "prompt" (text, or a list of chat messages) and the reward's columns
Held = dict[str, dict[str, list[Row]]]  # domain -> split -> rows
RESERVED = ("prompts", "completions", "completion_ids")  # the reward's other keywords


@dataclass(frozen=True)
class Source:
    """Where prompts come from."""

    metric: str  # "accuracy" where a verifier gives 0 or 1, else "reward"
    training: Callable[[int, int], list[Row]]  # (step, count) -> the rows of that step
    held_out: Held
    rows: list[Row] | None  # all training rows, where they are finite
    verifier: Callable[..., list[float]] | None  # the task's own reward function


def open_source(config: Config, chat: bool) -> Source:
    """The prompts that ``task`` or ``data`` names; ``chat`` says that the tokenizer has a chat
    template. ConfigError says what is wrong with them."""
    if config.data is not None:
        return _from_files(config)
    task = config.task or "suite"
    if task == "suite":
        return Source(
            "reward" if config.reward else "accuracy",
            lambda step, count: training_rows(config.seed, step, count),
            evaluation_rows(config.eval.seed, config.eval.prompts),
            None,
            tasks.reward,
        )
    if not task.startswith("reasoning_gym:"):
        raise ConfigError(f"task: is {task!r}, must be suite or reasoning_gym:NAME")
    try:
        gym = reasoning_gym.open_task(task.removeprefix("reasoning_gym:"), chat)
    except ValueError as error:
        raise ConfigError(f"task: {error}") from None
    return Source(
        "reward",
        lambda step, count: gym.training_rows(config.seed, step, count),
        {gym.name: {"id": gym.evaluation_rows(config.eval.seed, config.eval.prompts)}},
        None,
        gym.score,
    )


def training_rows(seed: int, step: int, count: int) -> list[Row]:
    """The prompts of one step of the built-in suite: in-domain ranges, the domains in turn."""
    names = list(DOMAINS)
    indices = range(step * count, (step + 1) * count)
    return [asdict(problem(seed, "train", names[i % len(names)], "id", i)) for i in indices]


def evaluation_rows(seed: int, count: int) -> Held:
    """Held-out prompts of the built-in suite, ``count`` per domain and split."""
    return {
        domain: {
            split: [asdict(problem(seed, "eval", domain, split, i)) for i in range(count)]
            for split in SPLITS
        }
        for domain in DOMAINS
    }


def columns(rows: list[Row]) -> dict[str, list]:
    """Rows as columns, without the prompt: the extra keywords of a reward function."""
    return {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}


def domain_of(row: Row) -> str:
    """Rows of a file may name their domain."""
    return row.get("domain") or "data"


def _from_files(config: Config) -> Source:
    rows = read_rows("data", Path(config.data))
    if config.eval_data is not None:
        held_out = _by_domain(read_rows("eval_data", Path(config.eval_data)), config)
    else:
        # Nothing is held out: the same measure on prompts that training sees, and called so.
        held_out = {
            domain: {"train": [row for split in splits.values() for row in split]}
            for domain, splits in _by_domain(rows, config).items()
        }

    @lru_cache(maxsize=2)
    def order(epoch: int) -> list[int]:
        shuffled = list(range(len(rows)))
        random.Random(f"{config.seed} data {epoch}").shuffle(shuffled)
        return shuffled

    def training(step: int, count: int) -> list[Row]:
        places = (divmod(i, len(rows)) for i in range(step * count, (step + 1) * count))
        return [rows[order(epoch)[place]] for epoch, place in places]

    return Source("reward", training, held_out, rows, None)


def _by_domain(rows: list[Row], config: Config) -> Held:
    """At most ``eval.prompts`` rows per domain and split, drawn by ``eval.seed``; rows whose
    column ``split`` is "ood" are out of domain, all others in domain."""
    held: Held = {}
    if not config.eval.prompts:
        return held
    for split in SPLITS:
        for row in rows:
            if (row.get("split") == "ood") == (split == "ood"):
                held.setdefault(domain_of(row), {}).setdefault(split, []).append(row)
    for domain, splits in held.items():
        for split, found in splits.items():
            if len(found) > config.eval.prompts:
                rng = random.Random(f"{config.eval.seed} {domain} {split}")
                splits[split] = rng.sample(found, config.eval.prompts)
    return held


def read_rows(name: str, path: Path) -> list[Row]:
    """All rows of a .jsonl or .parquet file, checked; a column that a row lacks is None there.

    Raises ConfigError with the line (the row, in parquet) that is wrong.
    """
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise ConfigError(f"{name}: is {path}, must end in .jsonl or .parquet")
    if not path.is_file():
        raise ConfigError(f"{name}: there is no file {path}")
    rows = []
    for place, row in readers[path.suffix](name, path):
        _check_row(f"{name}: {path}, {place}", row)
        rows.append(row)
    if not rows:
        raise ConfigError(f"{name}: {path} holds no rows, must hold at least one")
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in keys} for row in rows]


def _read_jsonl(name: str, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: cannot read {path}: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{name}: {path}, line {number} is not JSON: {error}") from None
        yield f"line {number}", row


def _read_parquet(name: str, path: Path) -> Iterable[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name}: cannot read {path} as parquet: {reason}") from None
    return ((f"row {number}", row) for number, row in enumerate(table.to_pylist(), start=1))


def _check_row(place: str, row: Any) -> None:
    if not isinstance(row, dict):
        raise ConfigError(f"{place} holds {type(row).__name__}, must be an object with a prompt")
    if "prompt" not in row:
        raise ConfigError(f"{place} has no key prompt; it has {', '.join(row) or 'none'}")
    for key in RESERVED:
        if key in row:
            raise ConfigError(f"{place} has a key {key}, which the reward function is given anyway")
    if not isinstance(row.get("domain") or "", str):
        raise ConfigError(f"{place}: domain is {row['domain']!r}, must be text")
    prompt = row["prompt"]
    if isinstance(prompt, str) and prompt:
        return
    messages = prompt if isinstance(prompt, list) else []
    texts = [m.get(k) for m in messages if isinstance(m, dict) for k in ("role", "content")]
    if not messages or len(texts) != 2 * len(messages) or not all(
        isinstance(text, str) for text in texts
    ):  # fmt: skip
        raise ConfigError(
            f"{place}: prompt is {_short(prompt)}, must be text or a list of messages "
            '{"role": ..., "content": ...}'
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
