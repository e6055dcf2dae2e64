"""Prompts and their columns, as the rollout and the reward function see them.

A source gives the rows of any training step as a pure function of (seed, step), so that a resumed
run goes on where it stood, and the held-out rows of an evaluation.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dfpo.config import Config, ConfigError
from dfpo.config.types import Row
from dfpo.config.untrusted import GIB, memory_limit
from dfpo.tasks import SPLITS, SUITES, Suite, benchmarks, reasoning_gym
from dfpo.tasks.stream import Stream

Held = dict[str, dict[str, list[Row]]]  # domain -> split -> rows
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
COLUMNS = 10_000  # of all rows together: each row gets them all
UNPACKED = 64  # times its size that a file may take in memory
RESERVED = (  # the reward's other keywords
    "prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra",
)  # fmt: skip


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
    stream = Stream(
        name, open_stream("data", Path(config.data)), _check_row,
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


def read_rows(name: str, path: Path) -> list[Row]:
    """All rows of a .jsonl, .parquet or .arrow file, of a directory that ``datasets`` saved, or of
    a data set on the Hugging Face hub, checked; a column that a row lacks is None there.

    Raises ConfigError with the line (the row, elsewhere) that is wrong.
    """
    readers = {".jsonl": _read_jsonl, ".parquet": _read_table, ".arrow": _read_table}
    if path.is_dir():
        return check_rows(f"{name}: {path}", _read_directory(name, path))
    if not path.exists() and HUB_NAME.fullmatch(str(path)) and path.suffix not in readers:
        return check_rows(f"{name}: {path}", _read_hub(name, str(path)))

    if path.suffix not in readers:
        raise ConfigError(
            f"{name}: is {path}, must end in .jsonl, .parquet or .arrow, or be a directory that "
            "datasets saved"
        )

    if not path.is_file():
        raise ConfigError(f"{name}: there is no file {path}")
    # Of its size on disk; a few kilobytes of a table may stand for any number of rows.
    room = UNPACKED * path.stat().st_size + 4 * GIB
    try:
        with memory_limit(room):
            return check_rows(f"{name}: {path}", readers[path.suffix](name, path))
    except MemoryError:
        raise ConfigError(
            f"{name}: {path} takes more than {room / GIB:.0f} GiB to read, must be smaller"
        ) from None


def check_rows(name: str, placed: Iterable[tuple[str, Any]]) -> list[Row]:
    """All rows of (place, row), checked; a column that a row lacks is None there."""
    rows = []
    for place, row in placed:
        _check_row(f"{name}, {place}", row)
        rows.append(row)
    if not rows:
        raise ConfigError(f"{name} holds no rows, must hold at least one")
    keys = dict.fromkeys(key for row in rows for key in row)
    if len(keys) > COLUMNS:
        raise ConfigError(f"{name} has {len(keys)} columns, must have at most {COLUMNS}")
    return [{key: row.get(key) for key in keys} for row in rows]


def _read_jsonl(name: str, path: Path) -> Iterator[tuple[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: cannot read {path}: {error}") from None

    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_distinct_keys)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{name}: {path}, line {number} is not JSON: {error}") from None
        yield f"line {number}", row


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of two values of one key json would keep the last, in silence."""
    row = dict(pairs)
    if len(row) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise ValueError(f"the key {twice[:60]!r} stands twice in one object")
    return row


def _read_table(name: str, path: Path) -> Iterable[tuple[str, Any]]:
    """Parquet, or the stream of record batches that ``datasets`` writes as .arrow."""
    import pyarrow
    from pyarrow import parquet

    kind = path.suffix.removeprefix(".")
    try:
        if kind == "parquet":
            table = parquet.read_table(path)
        else:
            with pyarrow.OSFile(str(path)) as file:
                table = pyarrow.ipc.open_stream(file).read_all()
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name}: cannot read {path} as {kind}: {reason}") from None

    return ((f"row {number}", row) for number, row in enumerate(table.to_pylist(), start=1))


def open_stream(name: str, path: Path) -> Any:  # datasets.IterableDataset
    """What ``read_rows`` reads, to be read as it goes. Raises ConfigError."""
    datasets = _datasets(name, path)
    if path.suffix == ".jsonl" and path.is_file():
        # Not by the library's own reader, which makes a table of one type a column.
        return datasets.IterableDataset.from_generator(_lines, gen_kwargs={"path": str(path)})
    kind = {".parquet": "parquet", ".arrow": "arrow"}.get(path.suffix)
    if kind and not path.is_file():
        raise ConfigError(f"{name}: there is no file {path}")
    known = [str(path)] if kind is None else [kind]
    files = {} if kind is None else {"data_files": str(path)}

    try:
        if path.is_dir():
            return _training_split(name, path, datasets.load_from_disk(path)).to_iterable_dataset()
        data = datasets.load_dataset(*known, **files, streaming=True)
    except ConfigError:
        raise
    # As in reading whole: no network, no such data set, a directory of another kind.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{name}: cannot read {path} as a stream: {reason}") from None

    return _training_split(name, path, data)


def _lines(path: str) -> Iterator[Row]:
    """The rows of a .jsonl, a line at a time."""
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise ConfigError(f"data: {path}, line {number} is not JSON: {error}") from None


def _read_directory(name: str, path: Path) -> Iterable[tuple[str, Any]]:
    datasets = _datasets(name, path)
    try:
        data = datasets.load_from_disk(str(path))
    # The library raises many kinds of error for a directory that is none of its own.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{name}: cannot read {path} as datasets saves it: {reason}") from None
    return _rows_of(name, path, data)


def _read_hub(name: str, known: str) -> Iterable[tuple[str, Any]]:
    datasets = _datasets(name, known)
    try:
        data = datasets.load_dataset(known)
    # No network, no such data set, no right to it: told in the library's words.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{name}: there is no file {known}, and the hub does not give it: {reason}"
        ) from None

    return _rows_of(name, known, data)


def _datasets(name: str, path: Path | str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"{name}: {path} needs the library datasets, which is not installed: pip install "
            "datasets"
        ) from None

    datasets.disable_progress_bars()
    return datasets


def _rows_of(name: str, path: Path | str, data: Any) -> Iterable[tuple[str, Any]]:
    data = _training_split(name, path, data)
    return ((f"row {number}", dict(row)) for number, row in enumerate(data, start=1))


def _training_split(name: str, path: Path | str, data: Any) -> Any:
    """Of several splits, the one for training."""
    if not isinstance(data, dict):
        return data
    if "train" not in data:
        raise ConfigError(f"{name}: {path} has splits {', '.join(data)}, must have one train")
    return data["train"]


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
        _check_text(place, prompt)
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
    for text in texts:
        _check_text(place, text)


def _check_text(place: str, text: str) -> None:
    """JSON may name half a character, of which no tokenizer makes tokens."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{place}: prompt holds {text[error.start]!a}, half a surrogate pair, must be text"
        ) from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
