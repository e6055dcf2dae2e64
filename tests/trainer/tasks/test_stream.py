"""Streams: rows by position, whatever was read before."""

import datetime
import json

import pyarrow
import pytest
from pyarrow import parquet

import dfpo
from dfpo.config import ConfigError, build_config
from dfpo.tasks.files import read_rows
from dfpo.tasks.source import open_source

datasets = pytest.importorskip("datasets")
COUNT = 23


def jsonl(folder, rows=None):
    path = folder / "rows.jsonl"
    rows = rows or [{"prompt": f"{i} plus 1", "gold": i} for i in range(COUNT)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def source(path, **settings):
    more = {"stream": True, "stream_buffer": 7, "reward": "f.py:f", "eval.prompts": 4}
    return open_source(build_config({"data": str(path)} | more | settings), chat=False)


def golds(rows):
    return [row["gold"] for row in rows]


def test_a_step_is_its_position(tmp_path):
    """From the beginning, in order, again, and by who begins in the middle: the same rows."""
    path = jsonl(tmp_path)
    first = source(path)
    steps = [golds(first.training(step, 5)) for step in range(12)]
    assert [golds(first.training(step, 5)) for step in (3, 4, 0)] == [steps[3], steps[4], steps[0]]
    assert golds(first.training(0, 3)) == steps[0][:3]
    assert [golds(source(path).training(step, 5)) for step in (9, 10)] == steps[9:11]
    assert golds(source(path, seed=1).training(0, 5)) != steps[0]


def test_every_row_once_an_epoch_in_an_order_of_its_own(tmp_path):
    rows = source(jsonl(tmp_path)).training(0, 3 * COUNT)
    epochs = [golds(rows)[i * COUNT : (i + 1) * COUNT] for i in range(3)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert golds(source(tmp_path / "rows.jsonl", stream_buffer=1).training(0, 5)) == [0, 1, 2, 3, 4]


def test_columns_of_any_kind_come_as_they_are(tmp_path):
    """Those of a table, by stream and whole: nested, binary, a time, a missing one."""
    rows = [
        {
            "prompt": f"{i}", "gold": i, "blob": bytes([i, 0, 255]),
            "when": datetime.datetime(2026, 1, 1 + i),
            "tests": [{"input": [i, 1.5], "name": "a"}], "hint": None if i else "first",
        }
        for i in range(3)
    ]  # fmt: skip
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    streamed = source(path, stream_buffer=1).training(0, 3)
    assert streamed == read_rows("data", path) == rows

    ragged = jsonl(tmp_path, [{"prompt": "a", "x": 1}, {"prompt": "b", "y": ["z", 2, {"k": None}]}])
    assert source(ragged, stream_buffer=1).training(0, 2) == [
        {"prompt": "a", "x": 1, "y": None}, {"prompt": "b", "x": None, "y": ["z", 2, {"k": None}]},
    ]  # fmt: skip


def test_what_datasets_saved_is_a_stream_too(tmp_path):
    rows = [{"prompt": f"{i}", "gold": i} for i in range(COUNT)]
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)}).save_to_disk(tmp_path / "own")
    assert sorted(golds(source(tmp_path / "own").training(0, COUNT))) == list(range(COUNT))


def test_evaluation_takes_the_first_rows_or_the_held_out_ones(tmp_path):
    path = jsonl(tmp_path)
    held = source(path).held_out
    assert list(held) == ["data"] and list(held["data"]) == ["train"]
    assert len(held["data"]["train"]) == 4
    apart = tmp_path / "apart.jsonl"
    apart.write_text('{"prompt": "x"}\n')
    assert source(path, eval_data=str(apart)).held_out == {"data": {"id": [{"prompt": "x"}]}}
    assert source(path, **{"eval.prompts": 0}).held_out == {}


def test_a_system_prompt_opens_each(tmp_path):
    (row,) = source(jsonl(tmp_path), system_prompt="Be brief.").training(0, 1)
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "a"}\n{"prompt": 3}\n', "row 2 of epoch 0: prompt is 3, must be text"),
        ('{"prompt": "a"}\nno\n', "line 2 is not JSON"),
        ('{"prompt": "a"}\n{"prompt": "b", "x": 1, "x": 2}\n', "the key 'x' stands twice"),
        ("\n", "holds no rows, must hold at least one"),
    ],
)
def test_a_wrong_row_is_one_line(tmp_path, content, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        source(path, stream_buffer=1, **{"eval.prompts": 0}).training(0, 2)


@pytest.mark.parametrize("name", ["nowhere.parquet", "folder"])
def test_a_stream_of_nothing_is_one_line(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="there is no file|cannot read .* as a stream") as error:
        source(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_stream_needs_data():
    with pytest.raises(ConfigError, match="stream: is true, must be false without data"):
        build_config({"stream": True})


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    path = jsonl(tmp_path)
    (tmp_path / "f.py").write_text(
        "def f(completions, gold, **_):\n    return [float(g % 3 == 0) for g in gold]\n"
    )
    common = {
        "data": path, "reward": f"{tmp_path}/f.py:f", "stream": True, "stream_buffer": 7,
        "critic": {"warmup_steps": 1}, "eval": {"prompts": 1}, "plots": False,
        "rollout": {"prompts": 3, "samples": 2, "max_new_tokens": 8}, "runs_dir": str(tmp_path),
    }  # fmt: skip
    whole = dfpo.train(name="whole", steps=4, **common)
    half = dfpo.train(name="half", steps=2, **common).resume(steps=4)

    def bits(run):
        lines = (run.directory / "metrics.jsonl").read_text().splitlines()
        steps = [
            {k: v for k, v in json.loads(line).items() if not k.startswith("perf")}
            for line in lines
        ]
        return steps, (run.directory / "policy/model.safetensors").read_bytes()

    assert bits(whole) == bits(half)
