"""What a rollout function may return, and the one line that answers what it may not."""

import pytest

from dfpo.config import ConfigError, build_config
from dfpo.rollout.functions import RolloutError, Room, call, load_rollout, read_played

PROMPTS = [[1, 2], [3]]
ROOM = Room(vocabulary=10, context=6)
GOOD = {"completion_ids": [[4, 5, 6], [7]]}


def play():
    """A function's name stands in its errors."""


def test_token_ids_are_enough():
    played = read_played(play, GOOD, PROMPTS, ROOM)
    assert played.prompt_ids == PROMPTS
    assert played.completion_ids == [[4, 5, 6], [7]]
    assert played.env_mask == [[True, True, True], [True]]
    assert played.logprobs is None and played.columns == {}


def test_all_that_may_be_returned():
    more = {
        "env_mask": [[1, 0, True], [1]], "logprobs": [[-0.5, None, -2], [0.0]],
        "prompt_ids": [[1], [2]], "turns": [2, 1],
    }  # fmt: skip
    played = read_played(play, GOOD | more, PROMPTS, ROOM)
    assert played.env_mask == [[True, False, True], [True]]
    assert played.logprobs == [[-0.5, 0.0, -2.0], [0.0]]  # nobody knows a tool's
    assert played.prompt_ids == [[1], [2]]
    assert played.columns == {"turns": [2, 1]}


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "play returned NoneType, must return a mapping with completion_ids"),
        ({"answers": []}, "play returned ['answers'], must return a mapping with completion_ids"),
        ({"completion_ids": "ab"}, "play's completion_ids is str, must be a list, an item per"),
        ({"completion_ids": [[4]]}, "play's completion_ids has 1 items, must have 2, one per"),
        ({"completion_ids": [[4], []]}, "completion_ids of answer 2 is [], must be a list of at"),
        ({"completion_ids": [[4], [10]]}, "answer 2 holds 10, must be integers from 0 to 9"),
        ({"completion_ids": [[4], [True]]}, "answer 2 holds True, must be integers from 0 to 9"),
        ({"completion_ids": [[4] * 5, [4]]}, "answer 1 and its prompt have 7 tokens, must be at"),
        ({**GOOD, "env_mask": [[1, 0], [1]]}, "env_mask of answer 1 has 2 items, must have 3"),
        ({**GOOD, "env_mask": [[1, 0, 2], [1]]}, "env_mask of answer 1 holds 2, must be 0 or 1"),
        ({**GOOD, "env_mask": [[1, 0, 1], [0]]}, "env_mask of answer 2 is 0 on all tokens, must"),
        ({**GOOD, "logprobs": [[-1, -1, 0.3], [0]]}, "logprobs of answer 1 holds 0.3, must be fi"),
        ({**GOOD, "logprobs": [[-1, -1], [0]]}, "logprobs of answer 1 has 2 items, must have 3"),
        ({**GOOD, "turns": [1]}, "play's turns has 1 items, must have 2, one per answer"),
        ({**GOOD, "completions": ["", ""]}, "play returned completions, must not: the reward"),
    ],
)
def test_what_is_wrong_is_one_line(returned, said):
    with pytest.raises(RolloutError) as error:
        read_played(play, returned, PROMPTS, ROOM)
    assert str(error.value).startswith("rollout: play") and said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_function_gets_what_its_signature_takes():
    def narrow(prompts):
        return prompts

    def wide(prompts, **columns):
        return columns

    assert call(narrow, {"prompts": 1}, {"tokenizer": 2, "gold": 3}) == 1
    assert call(wide, {"prompts": 1}, {"tokenizer": 2, "gold": 3}) == {"tokenizer": 2, "gold": 3}


def test_what_it_raises_is_told_with_its_line():
    def broken(prompts):
        raise KeyError("tool")

    with pytest.raises(
        RolloutError,
        match=r"rollout: broken raised KeyError: 'tool' \(test_functions.py, line \d+\)",
    ):
        call(broken, {"prompts": []}, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("play.py", "rollout: is play.py, must be FILE.py:FUNCTION"),
        ("nowhere.py:play", "rollout: there is no file nowhere.py"),
        ("python:play", "rollout: play was a function given in Python, which no file holds"),
    ],
)
def test_a_name_of_no_function_is_one_line(text, said):
    with pytest.raises(ConfigError) as error:
        load_rollout(build_config({"rollout": text}))
    assert said in str(error.value)
