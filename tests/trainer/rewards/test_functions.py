"""Reward functions: what they are given, what they return, what they do wrong."""

import math

import pytest
import torch

from dfpo.rewards.functions import Reward, RewardError

ROWS = [{"prompt": f"p{i}", "answer": str(i)} for i in range(4)]
TEXTS = ["0", "x", "2", ""]
IDS = [[1], [2, 3], [4], [5]]


def score(*functions, weights=None, rows=ROWS, strict=False):
    names = tuple(f"f{i}" for i in range(len(functions)))
    reward = Reward(names, functions, weights or (1.0,) * len(functions))
    return reward(rows, TEXTS, IDS, strict=strict)


def test_the_signature_is_trls():
    seen = {}

    def reward(prompts, completions, completion_ids, **columns):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, more=columns)
        return [1.0] * len(prompts)

    score(reward)
    assert seen["prompts"] == ["p0", "p1", "p2", "p3"]
    assert (seen["completions"], seen["ids"]) == (TEXTS, IDS)
    trainers = ["trainer_state", "log_metric", "log_extra"]
    assert list(seen["more"]) == ["answer", *trainers]
    assert seen["more"]["answer"] == ["0", "1", "2", "3"]


def test_chat_prompts_get_chat_completions():
    rows = [{"prompt": [{"role": "user", "content": "hi"}]}] * 4

    def reward(prompts, completions, **_):
        assert prompts[0] == [{"role": "user", "content": "hi"}]
        return [float(c == [{"role": "assistant", "content": t}])
                for c, t in zip(completions, TEXTS, strict=True)]  # fmt: skip

    assert score(reward, rows=rows, strict=True).values.tolist() == [1, 1, 1, 1]


def test_none_is_unscored_and_never_zero():
    scored = score(lambda completions, **_: [1.0, None, 0.0, None])
    assert scored.values[:3:2].tolist() == [1.0, 0.0]
    assert scored.values[1::2].isnan().all()
    assert (scored.unscored, scored.invalid, scored.problem) == (2, 0, None)


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, "numpy"])
def test_what_may_be_returned(kind):
    import numpy

    wrap = numpy.array if kind == "numpy" else kind
    values = score(lambda **_: wrap([1.0, 0.5, -2.0, 3.0]), strict=True).values
    assert values.tolist() == [1.0, 0.5, -2.0, 3.0]
    booleans = score(lambda **_: [True, False, numpy.float64(0.25), torch.tensor(2)], strict=True)
    assert booleans.values.tolist() == [1.0, 0.0, 0.25, 2.0]


def test_several_are_summed_with_weights():
    first, second = (lambda **_: [1.0, None, None, 2.0]), (lambda **_: [10.0, 4.0, None, None])
    scored = score(first, second, weights=(2.0, 0.5))
    # 2 * 1 + .5 * 10; .5 * 4; unscored by both; 2 * 2
    assert scored.values[[0, 1, 3]].tolist() == [7.0, 2.0, 4.0]
    assert scored.unscored == 1 and scored.values[2].isnan()
    assert scored.parts["f0"][[0, 3]].tolist() == [1.0, 2.0] and scored.parts["f1"][2].isnan()


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (math.nan, "returned nan"),
        (math.inf, "returned inf"),
        ("1.0", "returned '1.0'"),
        ({"score": 1.0}, "returned {'score': 1.0}"),
    ],
)
def test_one_bad_value_costs_one_answer(bad, words):
    scored = score(lambda **_: [1.0, bad, 3.0, 4.0])
    assert scored.values[[0, 2, 3]].tolist() == [1.0, 3.0, 4.0] and scored.values[1].isnan()
    assert (scored.unscored, scored.invalid) == (0, 1)
    assert words in scored.problem
    with pytest.raises(RewardError, match="f0"):
        score(lambda **_: [1.0, bad, 3.0, 4.0], strict=True)


def test_a_batch_that_raises_is_tried_answer_by_answer():
    calls = []

    def reward(completions, **_):
        calls.append(len(completions))
        return [float(int(c)) for c in completions]

    scored = score(reward)
    assert calls == [4, 1, 1, 1, 1]
    assert scored.values[[0, 2]].tolist() == [0.0, 2.0]
    assert scored.invalid == 2
    assert "ValueError" in scored.problem and "test_functions.py, line" in scored.problem


def test_a_failure_of_one_reward_is_no_zero_in_the_sum():
    scored = score(lambda **_: [1.0] * 4, lambda **_: [1.0, math.nan, 1.0, 1.0])
    assert scored.values[1].isnan() and scored.invalid == 1
    assert scored.values[0] == 2.0


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda **_: [1.0] * 3, "3 scores for 4 answers"),
        (lambda **_: 1.0, "returned float"),
        (lambda **_: None, "returned NoneType"),
        (lambda completions: [1.0] * 4, "unexpected keyword"),
        (lambda **_: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_strict_names_what_is_wrong(function, words):
    with pytest.raises(RewardError) as error:
        score(function, strict=True)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_function_cannot_spoil_what_the_next_one_sees():
    def spoil(completions, **_):
        completions.clear()
        return [0.0] * 4

    assert score(spoil, lambda completions, **_: [float(len(completions))] * 4).values[0] == 4.0
