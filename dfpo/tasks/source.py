"""Prompts and their columns, as the rollout and the reward function see them.

A source gives the rows of any training step as a pure function of (seed, step), so that a resumed
run goes on where it stood, and the held-out rows of an evaluation.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from dfpo.config import Config, ConfigError
from dfpo.config.types import Row
from dfpo.tasks import SPLITS, SUITES, Suite, benchmarks, reasoning_gym
from dfpo.tasks.files import check_row, open_stream, read_rows
from dfpo.tasks.stream import RowStream

Held = dict[str, dict[str, list[Row]]]  # domain -> split -> rows


@dataclass(frozen=True)
class Source:
    """Where prompts come from."""

    metric: str  # "accuracy" where a verifier gives 0 or 1, else "reward"
    training: Callable[[int, int], list[Row]]  # (step, count) -> the rows of that step
    held_out: Held
    rows: list[Row] | None  # all training rows, where they are finite
    verifier: Callable[..., list[float]] | None  # the task's own reward function
    # (completion, domain) -> its final answer, None where it has none; what votes are cast on
    extract: Callable[[str, str], str | None] | None = None


def open_source(
    config: Config,
    chat: bool,
    rows: list[Row] | None = None,
    held_out: list[Row] | None = None,
) -> Source:
    """The prompts that ``task`` or ``data`` names, or those of ``rows`` and ``held_out``; ``chat``
    says that the tokenizer has a chat template. ConfigError says what is wrong with them."""
    if config.data is not None:
        return _from_rows(config, rows, held_out)
    task = config.task or "suite"
    name, _, rest = task.partition(":")
    if name in SUITES:
        return _from_suite(config, SUITES[name], _trained_domains(task, SUITES[name]))
    if name == "benchmarks" and rest:
        return _from_benchmarks(config, Path(rest), chat)

    if name != "reasoning_gym" or not rest:
        raise ConfigError(
            f"task: is {task!r}, must be {', '.join(SUITES)}, each alone or with :DOMAIN[,DOMAIN], "
            "reasoning_gym:NAME or benchmarks:DIR"
        )

    try:
        gym = reasoning_gym.open_task(rest, chat)
    except ValueError as error:
        raise ConfigError(f"task: {error}") from None

    return Source(
        "reward",
        lambda step, count: gym.training_rows(config.seed, step, count),
        {gym.name: {"id": gym.evaluation_rows(config.eval.seed, config.eval.prompts)}},
        None,
        gym.score,
    )


def _trained_domains(task: str, suite: Suite) -> tuple[str, ...]:
    """The domains that "NAME:DOMAIN,..." names, all of them where it is "NAME"."""
    _, colon, text = task.partition(":")
    if not colon:
        return tuple(suite.domains)
    named = tuple(dict.fromkeys(word.strip() for word in text.split(",")))

    for domain in named:
        if domain not in suite.domains:
            raise ConfigError(
                f"task: {task!r} names the domain {domain!r}, must be one of "
                f"{', '.join(suite.domains)}"
            )

    return named


def _from_suite(config: Config, suite: Suite, trained: tuple[str, ...]) -> Source:
    return Source(
        "reward" if config.reward.functions else "accuracy",
        lambda step, count: training_rows(config.seed, step, count, suite, trained),
        evaluation_rows(config.eval.seed, config.eval.prompts, suite, trained),
        None,
        suite.reward,
        suite.extract,
    )


def training_rows(
    seed: int,
    step: int,
    count: int,
    suite: Suite = SUITES["suite"],
    trained: tuple[str, ...] | None = None,
) -> list[Row]:
    """The prompts of one step of a suite: in-domain ranges, the trained domains (default all) in
    turn."""
    trained = trained or tuple(suite.domains)
    indices = range(step * count, (step + 1) * count)
    named = ((i, trained[i % len(trained)]) for i in indices)
    return [asdict(suite.problem(seed, "train", domain, "id", i)) for i, domain in named]


def evaluation_rows(
    seed: int,
    count: int,
    suite: Suite = SUITES["suite"],
    trained: tuple[str, ...] | None = None,
) -> Held:
    """Held-out prompts of a suite, ``count`` per domain and range. In domain are the trained
    domains' own ranges (default all); out of domain their harder ranges, and other domains in
    both."""
    held: Held = {}
    for domain in suite.domains:
        rows = {
            split: [asdict(suite.problem(seed, "eval", domain, split, i)) for i in range(count)]
            for split in SPLITS
        }
        held[domain] = (
            rows if domain in (trained or suite.domains) else {"ood": rows["id"] + rows["ood"]}
        )

    return held


def absolute_task(task: str | None) -> str | None:
    """The same task from anywhere: a folder's path made absolute."""
    name, _, rest = (task or "").partition(":")
    return f"{name}:{Path(rest).absolute()}" if name == "benchmarks" and rest else task


def columns(rows: list[Row]) -> dict[str, list]:
    """Rows as columns, without the prompt: the extra keywords of a reward function."""
    return {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}


def domain_of(row: Row) -> str:
    """Rows of a file may name their domain."""
    return row.get("domain") or "data"


def column_of(row: Row, name: str) -> str:
    """A row's value of a column, as text; "domain" is that of ``domain_of``."""
    return domain_of(row) if name == "domain" else str(row.get(name))


def _from_rows(config: Config, rows: list[Row] | None, evaluated: list[Row] | None) -> Source:
    """Rows that are given, else those of the files of ``data`` and ``eval_data``."""
    if config.stream and rows is None:
        return _from_stream(config, evaluated)
    rows = with_system(rows or read_rows("data", Path(config.data)), config.system_prompt)
    held_out = _held_out(config, evaluated, lambda: rows)
    return Source("reward", _epochs(rows, config), held_out, rows, None)


def _from_stream(config: Config, evaluated: list[Row] | None) -> Source:
    """Rows of ``data`` as they come; those that evaluation takes of it are its first."""
    name, system = f"data: {config.data}", config.system_prompt
    stream = RowStream(
        name, open_stream("data", Path(config.data)), check_row,
        seed=config.seed, buffer=config.stream_buffer,
    )  # fmt: skip
    held_out = _held_out(
        config, evaluated, lambda: with_system(stream.head(config.eval.prompts), system)
    )

    def training(step: int, count: int) -> list[Row]:
        return with_system(stream.step(step, count), system)

    return Source("reward", training, held_out, None, None)


def _held_out(
    config: Config, evaluated: list[Row] | None, trained: Callable[[], list[Row]]
) -> Held:
    """The rows that are given or those of ``eval_data``. Without them nothing is held out: the same
    measure on prompts that training sees, and called so."""
    if not config.eval.prompts:
        return {}
    if evaluated is None and config.eval_data is not None:
        evaluated = read_rows("eval_data", Path(config.eval_data))
    if evaluated is not None:
        return _by_domain(with_system(evaluated, config.system_prompt), config)
    return {
        domain: {"train": [row for split in splits.values() for row in split]}
        for domain, splits in _by_domain(trained(), config).items()
    }


def _from_benchmarks(config: Config, folder: Path, chat: bool) -> Source:
    try:
        rows, held_out = benchmarks.read_folder(folder, chat)
    except (OSError, ValueError) as error:
        raise ConfigError(f"task: {error}") from None

    return Source(
        "reward" if config.reward.functions else "accuracy",
        _epochs(rows, config),
        _by_domain(held_out, config),
        rows,
        benchmarks.score,
        benchmarks.extract,
    )


def _epochs(rows: list[Row], config: Config) -> Callable[[int, int], list[Row]]:
    """Every row once an epoch, each epoch in an order of its own."""

    @lru_cache(maxsize=2)
    def order(epoch: int) -> list[int]:
        shuffled = list(range(len(rows)))
        random.Random(f"{config.seed} data {epoch}").shuffle(shuffled)
        return shuffled

    def training(step: int, count: int) -> list[Row]:
        places = (divmod(i, len(rows)) for i in range(step * count, (step + 1) * count))
        return [rows[order(epoch)[place]] for epoch, place in places]

    return training


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
        for split, candidates in splits.items():
            if len(candidates) > config.eval.prompts:
                rng = random.Random(f"{config.eval.seed} {domain} {split}")
                splits[split] = rng.sample(candidates, config.eval.prompts)

    return held


def with_system(rows: list[Row], system: str | None) -> list[Row]:
    """The rows, each prompt opened by a system message; one that has its own keeps it. A prompt of
    text becomes the user's message."""
    if system is None:
        return rows
    opening = {"role": "system", "content": system}
    changed = []

    for row in rows:
        prompt = row["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        own = messages[0]["role"] == "system"
        changed.append(row | {"prompt": messages if own else [opening, *messages]})

    return changed
