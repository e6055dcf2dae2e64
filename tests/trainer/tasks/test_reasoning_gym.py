"""Tasks of reasoning-gym."""

from zlib import crc32

import pytest

from dfpo.config import ConfigError, build_config
from dfpo.tasks.reasoning_gym import open_task
from dfpo.tasks.source import open_source

GYM = ["chain_sum", "gcd", "leg_counting", "simple_equations", "time_intervals"]


@pytest.mark.parametrize("name", GYM)
def test_reasoning_gym(name):
    gym = open_task(name, chat=True)
    train, held = gym.training_rows(3, 0, 8), gym.evaluation_rows(3, 8)
    assert train[2:4] == gym.training_rows(3, 1, 2), "a row depends on its place alone"
    assert {crc32(r["prompt"][0]["content"].encode()) % 5 == 0 for r in held} == {True}
    assert {crc32(r["prompt"][0]["content"].encode()) % 5 == 0 for r in train} == {False}
    entries = [row["entry"] for row in train]
    right = [f"Let me see. <answer>{row['answer']}</answer>" for row in train]
    assert gym.score(completions=right, entry=entries) == [1.0] * 8
    bare = [[{"role": "assistant", "content": f" {row['answer']}\n"}] for row in train]
    assert gym.score(completions=bare, entry=entries) == [1.0] * 8
    wrong = gym.score(completions=["<answer>no idea</answer>"] * 8, entry=entries)
    assert max(wrong) < 0.5


def test_reasoning_gym_settings_and_plain_text():
    gym = open_task("chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1", chat=False)
    row = gym.training_rows(0, 0, 1)[0]
    assert isinstance(row["prompt"], str)
    assert (
        row["entry"]["metadata"]["num_terms"] == 2 and row["entry"]["metadata"]["num_digits"] == 1
    )


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("reasoning_gym:chain_som", ["chain_som", "did you mean chain_sum?"]),
        ("reasoning_gym:chain_sum,max_terms", ["max_terms", "KEY=VALUE"]),
        ("reasoning_gym:chain_sum,terms=2", ["terms"]),
        ("reasoning_gym:chain_sum,min_terms=9,max_terms=2", ["chain_sum"]),
        ("arithmetic", ["arithmetic", "suite", "reasoning_gym:NAME"]),
    ],
)
def test_wrong_tasks_are_named(task, words):
    with pytest.raises(ConfigError) as error:
        open_source(build_config({"task": task}), chat=True)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
