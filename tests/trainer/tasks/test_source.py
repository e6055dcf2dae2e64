"""Prompts from files and from reasoning-gym."""

import json

import pytest

from dfpo.config import ConfigError, build_config
from dfpo.tasks.source import open_source, with_system


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def source(tmp_path, rows, *, chat=True, **settings):
    path = write(tmp_path / "train.jsonl", rows)
    config = build_config({"data": str(path), "reward": "x.py:f", **settings})
    return open_source(config, chat)


def test_every_epoch_meets_every_prompt_once(tmp_path):
    rows = [{"prompt": str(i)} for i in range(10)]
    training = source(tmp_path, rows).training
    seen = [row["prompt"] for step in range(5) for row in training(step, 4)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == sorted(str(i) for i in range(10))
    assert seen[:10] != seen[10:], "each epoch has an order of its own"
    assert [row["prompt"] for row in training(3, 4)] == seen[12:16], "a step knows its place"
    other = source(tmp_path, rows, seed=1).training(0, 4)
    assert [row["prompt"] for row in other] != seen[:4]


def test_held_out_rows_have_domains_and_splits(tmp_path):
    rows = [
        {"prompt": f"{i}", "domain": "ab"[i % 2], "split": "ood" if i < 4 else "test"}
        for i in range(12)
    ]
    path = write(tmp_path / "eval.jsonl", rows)
    held = source(tmp_path, rows, eval_data=str(path)).held_out
    assert {d: {s: len(r) for s, r in splits.items()} for d, splits in held.items()} == {
        "a": {"id": 4, "ood": 2}, "b": {"id": 4, "ood": 2}
    }  # fmt: skip
    few = source(tmp_path, rows, **{"eval_data": str(path), "eval.prompts": 3}).held_out
    assert len(few["a"]["id"]) == 3 and len(few["a"]["ood"]) == 2
    assert few == source(tmp_path, rows, **{"eval_data": str(path), "eval.prompts": 3}).held_out


def test_without_held_out_rows_training_prompts_are_called_so(tmp_path):
    rows = [{"prompt": str(i)} for i in range(5)]
    held = source(tmp_path, rows).held_out
    assert list(held) == ["data"] and list(held["data"]) == ["train"]
    assert source(tmp_path, rows, **{"eval.prompts": 0}).held_out == {}


def test_training_on_named_domains_makes_the_others_out_of_domain():
    config = build_config({"task": "hard:science", "eval.prompts": 3})
    source = open_source(config, chat=False)
    rows = source.training(0, 5)
    assert [row["domain"] for row in rows] == ["science"] * 5
    assert rows[3:] == source.training(0, 5)[3:] and rows[0] != source.training(1, 5)[0]
    counts = {d: {s: len(r) for s, r in splits.items()} for d, splits in source.held_out.items()}
    # Of the other domains both ranges are out of domain.
    assert counts == {"math": {"ood": 6}, "science": {"id": 3, "ood": 3}, "dialogue": {"ood": 6}}
    whole = open_source(build_config({"task": "hard", "eval.prompts": 3}), chat=False)
    assert source.held_out["science"] == whole.held_out["science"]
    assert source.held_out["math"]["ood"] == [
        row for split in ("id", "ood") for row in whole.held_out["math"][split]
    ]
    trained = {row["prompt"] for step in range(20) for row in source.training(step, 16)}
    held = {
        r["prompt"] for splits in whole.held_out.values() for rows in splits.values() for r in rows
    }
    assert not trained & held


def test_two_named_domains_take_turns():
    source = open_source(build_config({"task": "suite:math,dialogue"}), chat=False)
    assert [r["domain"] for r in source.training(0, 4)] == ["math", "dialogue", "math", "dialogue"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("suit", "must be suite, hard"),
        ("hard:", "names the domain ''"),
        ("hard:maths", "names the domain 'maths', must be one of math, science, dialogue"),
        ("benchmarks:", "or benchmarks:DIR"),
        ("benchmarks:nowhere", "nowhere/train holds no file"),
    ],
)
def test_unknown_tasks_and_domains_are_named(task, message):
    with pytest.raises(ConfigError, match=message):
        open_source(build_config({"task": task}), chat=False)


def test_a_system_prompt_opens_each_prompt_once():
    own = [{"role": "system", "content": "mine"}, {"role": "user", "content": "b"}]
    asked = [{"role": "user", "content": "c"}]
    rows = [{"prompt": "a", "n": 1}, {"prompt": own, "n": 2}, {"prompt": asked, "n": 3}]
    opening = {"role": "system", "content": "be brief"}
    found = with_system(rows, "be brief")
    assert [row["prompt"] for row in found] == [
        [opening, {"role": "user", "content": "a"}], own, [opening, *asked],
    ]  # fmt: skip
    assert [row["n"] for row in found] == [1, 2, 3]
    assert with_system(rows, None) is rows
