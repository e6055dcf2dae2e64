"""Rows of prompts from files, from what ``datasets`` saved and from the hub, whole or as a stream.

What is read is somebody else's: each fault is one line that names the place, and memory is bounded.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dfpo.config import ConfigError
from dfpo.config.types import Row
from dfpo.config.untrusted import GIB, memory_limit

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
COLUMNS = 10_000  # of all rows together: each row gets them all
UNPACKED = 64  # times its size that a file may take in memory
RESERVED = (  # the reward's other keywords
    "prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra",
)  # fmt: skip


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
        check_row(f"{name}, {place}", row)
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
        yield f"line {number}", _parse(f"{name}: {path}, line {number}", line)


def _parse(place: str, line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_distinct_keys)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place} is not JSON: {error}") from None


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
                yield _parse(f"data: {path}, line {number}", line)


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


def check_row(place: str, row: Any) -> None:
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
