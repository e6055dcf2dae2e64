"""Rows that strangers wrote: what is read, and how each fault is named."""

import json
import resource
import time
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from dfpo.config import ConfigError, build_config
from dfpo.tasks.files import read_rows
from dfpo.tasks.source import open_source

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def source(tmp_path, rows, *, chat=True, **settings):
    path = write(tmp_path / "train.jsonl", rows)
    config = build_config({"data": str(path), "reward": "x.py:f", **settings})
    return open_source(config, chat)


def test_jsonl_and_parquet_hold_the_same(tmp_path):
    rows = [{"prompt": CHAT, "answer": 4}, {"prompt": CHAT[1:], "answer": 5}]
    path = write(tmp_path / "a.jsonl", rows)
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_rows("data", path) == read_rows("data", tmp_path / "a.parquet") == rows


def test_a_missing_column_is_none(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "a", "x": 1}, {"prompt": "b", "y": 2}])
    assert read_rows("data", path) == [
        {"prompt": "a", "x": 1, "y": None},
        {"prompt": "b", "x": None, "y": 2},
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"prompt": "a"}\n\n{"prompt": \n', ["line 3", "not JSON"]),
        ('{"prompt": "a"}\n["b"]\n', ["line 2", "list"]),
        ('{"question": "a"}\n', ["line 1", "prompt", "question"]),
        ('{"prompt": ""}\n', ["line 1", "''"]),
        ('{"prompt": 3}\n', ["line 1", "3"]),
        ('{"prompt": []}\n', ["line 1", "[]"]),
        ('{"prompt": [{"role": "user"}]}\n', ["line 1", "role"]),
        ('{"prompt": [{"role": "user", "content": 3}]}\n', ["line 1", "content"]),
        ('{"prompt": "a", "completions": 1}\n', ["line 1", "completions"]),
        ('{"prompt": "a", "domain": 1}\n', ["line 1", "domain"]),
        ("\n", ["no rows"]),
    ],
)
def test_wrong_lines_are_named(tmp_path, content, words):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_rows("data", path)
    assert "\n" not in str(error.value)
    for word in [*words, "a.jsonl"]:
        assert word in str(error.value)


@pytest.mark.parametrize("name", ["absent.jsonl", "a.csv", "broken.parquet", "latin.jsonl"])
def test_wrong_files_are_named(tmp_path, name):
    (tmp_path / "a.csv").write_text("prompt\na\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(ConfigError, match=name):
        read_rows("data", tmp_path / name)


def test_what_datasets_saves_holds_the_same(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}]
    data = datasets.Dataset.from_list(rows)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "two")
    (arrow,) = (tmp_path / "one").glob("*.arrow")
    for path in (tmp_path / "one", tmp_path / "two", arrow):
        assert read_rows("data", path) == rows, path
    datasets.DatasetDict({"test": data}).save_to_disk(tmp_path / "three")
    with pytest.raises(ConfigError, match="must have one train"):
        read_rows("data", tmp_path / "three")
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="as datasets saves it"):
        read_rows("data", tmp_path / "none")


def test_a_hub_name_without_a_network_is_one_line(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def refuse(name):
        raise ConnectionError("Couldn't reach the Hub\nat all")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ConfigError, match="the hub does not give it") as error:
        read_rows("data", Path("openai/gsm8k"))
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "a"}\n')
    assert read_rows("data", path) == [{"prompt": "a"}]
    path.write_bytes('{"prompt": "a"}\n'.encode("utf-16"))
    with pytest.raises(ConfigError, match="cannot read"):
        read_rows("data", path)


def tokens_of(count):
    return pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * count, pyarrow.int32()), pyarrow.array(["x" * 100_000])
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"prompt": "a", "prompt": "b"}\n', ["line 1", "'prompt' stands twice"]),
        ('{"prompt": "a"}\n'.encode("utf-16"), ["utf-8"]),
        ('{"prompt": "\\ud800"}\n', ["line 1", "half a surrogate pair"]),
        ('{"prompt": [{"role": "user", "content": "\\udfff"}]}\n', ["half a surrogate pair"]),
        ('{"prompt": "a", "x": ' + "9" * 10**6 + "}\n", ["line 1 is not JSON"]),
        ('{"prompt": "a", "x": ' + "[" * 10**6 + "}\n", ["line 1 is not JSON"]),
        ('{"prompt": "' + "x" * 10**8, ["line 1 is not JSON"]),
        ({"prompt": "a", **{f"c{i}": i for i in range(10**6)}}, ["1000001 columns", "10000"]),
    ],
)
def test_hostile_jsonl(tmp_path, content, words):
    path = tmp_path / "a.jsonl"
    content = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    check_refusal(path, words)


def check_refusal(path, words):
    """One line within twenty seconds of work and 3 GiB."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ConfigError) as error:
        read_rows("data", path)
    said = str(error.value)
    assert len(said) < 500 and "\n" not in said
    for word in words:
        assert word in said
    assert time.process_time() - began < 20
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 3 * 2**30


def test_rows_of_columns_of_their_own(tmp_path):
    """5000 rows of 20 keys each would be 500 million cells."""
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": "a"} | {f"c{i}_{j}": 1 for j in range(20)} for i in range(5000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_refusal(path, ["100001 columns"])


def test_a_table_that_unpacks_without_end(tmp_path, monkeypatch):
    """A few kilobytes that stand for 10^10 letters."""
    monkeypatch.setattr("dfpo.tasks.files.GIB", 2**28)
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"prompt": tokens_of(100_000)}), path)
    assert path.stat().st_size < 10**6
    check_refusal(path, ["GiB to read"])


def test_parquet_of_nulls_within_messages(tmp_path):
    path = tmp_path / "a.parquet"
    prompts = pyarrow.array([[{"role": "user", "content": None}], None, [None]])
    parquet.write_table(pyarrow.table({"prompt": prompts}), path)
    check_refusal(path, ["row 1", "prompt is"])


def test_numbers_that_json_does_not_have_are_columns(tmp_path):
    """As pandas writes what is missing; the reward function gets them."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "x": NaN, "y": Infinity}\n')
    (row,) = read_rows("data", path)
    assert row["x"] != row["x"] and row["y"] == float("inf")
