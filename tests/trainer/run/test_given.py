"""What Python hands over: what is taken, what is refused, what is stored."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_models import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from dfpo.config import ConfigError
from dfpo.run.given import Given, name_of, read_data, read_model, read_rewards, read_rollout

ROWS = [{"prompt": "1 plus 2", "gold": 3}, {"prompt": "ä", "gold": [4]}]


def concise(completions, **columns):
    return [0.0] * len(completions)


def test_paths_are_left_to_the_configuration():
    for read in (read_model, partial(read_data, "data")):
        assert read(None) is None and read("a/path") is None
    assert read_rewards(None) == ((), []) and read_rollout(None) == (None, {})
    assert read_rewards(["a.py:f", "judge"]) == ((), ["a.py:f", "judge"])
    assert read_rollout("play.py:play") == (None, {"rollout.function": "play.py:play"})


def test_functions_are_known_by_their_names():
    class Judge:
        def __call__(self, completions, **columns):
            return [0.0] * len(completions)

    assert [name_of(f) for f in (concise, Judge())] == ["concise", "Judge"]
    given = Given(rewards=read_rewards([concise, Judge()])[0], rollout=read_rollout(concise)[0])
    assert given.settings() == {
        "reward.functions": ["python:concise", "python:Judge"],
        "rollout.function": "python:concise",
    }


def test_a_rollout_may_be_settings_and_a_function():
    own, settings = read_rollout({"function": concise, "prompts": 3})
    assert own is concise and settings == {"rollout.prompts": 3}
    own, settings = read_rollout({"function": "a.py:f"})
    assert own is None and settings == {"rollout.function": "a.py:f"}


def test_a_model_is_made_ready_and_its_tokenizer_left_alone(tmp_path):
    folder = make_model(tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).train()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
    tokenizer.pad_token = None
    ready, own = read_model((model, tokenizer))
    assert {p.dtype for p in ready.parameters()} == {torch.float32} and not ready.training
    assert (own.padding_side, own.pad_token) == ("left", "</s>")
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("right", None)


def test_what_is_stored_reads_back(tmp_path):
    given = Given(rows=ROWS, held_out=ROWS[:1])
    assert given.settings() == {"data": "(given)", "eval_data": "(given)"}
    given.store(tmp_path)
    places = given.stored(tmp_path)
    assert set(places) == {"data", "eval_data"}
    lines = Path(places["data"]).read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    assert json.loads(Path(places["eval_data"]).read_text("utf-8")) == ROWS[0]


@pytest.mark.parametrize(
    ("read", "value", "said"),
    [
        (read_model, 3, "model: is int, must be a path, or"),
        (read_model, (3, 4), "model: is tuple, must be a path, or"),
        (partial(read_data, "data"), 3, "data: is int, must be a path, a list of rows"),
        (partial(read_data, "eval_data"), [{"prompt": "a", "x": {1}}], "eval_data: rows must hold"),
        (read_rewards, [concise, "a.py:f"], "reward: must be functions, or paths, not some of"),
        (read_rollout, 3, "rollout: is int, must be a function, FILE.py:FUNCTION or a mapping"),
    ],
)
def test_what_is_refused_is_said(read, value, said):
    with pytest.raises(ConfigError, match=said):
        read(value)
