"""Reward functions: what they are given, what they return, what they do wrong."""

import math

import pytest
import torch
from tiny_models import make_reward_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dfpo.config import ConfigError, build_config
from dfpo.rewards.functions import Reward, RewardError
from dfpo.rewards.sources import load_function, load_reward

CPU = torch.device("cpu")
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


def test_files_are_loaded_with_their_neighbours(tmp_path):
    (tmp_path / "neighbour_of_reward.py").write_text("VALUE = 3.0\n")
    path = tmp_path / "mine.py"
    path.write_text(
        "from neighbour_of_reward import VALUE\n"
        "def f(prompts, **_): return [VALUE] * len(prompts)\n"
    )
    reward = load_reward(build_config({"reward": f"{path}:f,{path}:f"}), None, CPU)
    assert reward.names == ("f", "f-2")
    assert reward(ROWS, TEXTS, IDS).values.tolist() == [6.0] * 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("absent.py:f", ["absent.py", "no file"]),
        ("{file}", ["FILE.py:FUNCTION"]),
        ("{file}:g", ["no function g"]),
        ("{broken}:f", ["broken.py", "SyntaxError"]),
        ("{raising}:f", ["raising.py", "line 2", "RuntimeError: no"]),
        ("{folder}", ["config.json"]),
    ],
)
def test_wrong_rewards_are_named(tmp_path, text, words):
    files = {
        "file": "f = len\n", "broken": "def f(:\n", "raising": "\nraise RuntimeError('no')\n"
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / f"{name}.py").write_text(content)
    places = {name: tmp_path / f"{name}.py" for name in files} | {"folder": tmp_path}
    with pytest.raises(ConfigError) as error:
        load_function(text.format(**places), CPU)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    return make_reward_model(tmp_path_factory.mktemp("reward_model"))


def test_a_reward_model_scores_prompt_and_answer(reward_model):
    """Padding beside other answers changes nothing; the logit is the model's own."""
    name, function = load_function(str(reward_model), CPU)
    prompts, answers = ["Add 1 + 2: ", "Say a word: "], ["3", "a much longer answer than that"]
    scores = function(prompts=prompts, completions=answers, completion_ids=[[1], [1]])
    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    model = AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    with torch.no_grad():
        alone = [
            model(**tokenizer(p + a, return_tensors="pt")).logits.item()
            for p, a in zip(prompts, answers, strict=True)
        ]
    assert scores == pytest.approx(alone, abs=1e-5)
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)


def test_a_reward_model_reads_chats_through_its_template(reward_model):
    _, function = load_function(str(reward_model), CPU)
    chat = [{"role": "user", "content": "hi"}]
    answer = [{"role": "assistant", "content": "ho"}]
    text = "<user>hi</s><assistant>ho</s>"
    model = AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    ids = AutoTokenizer.from_pretrained(reward_model)(
        text, add_special_tokens=False, return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**ids).logits.item()
    assert function(prompts=[chat], completions=[answer]) == [pytest.approx(expected, abs=1e-6)]
