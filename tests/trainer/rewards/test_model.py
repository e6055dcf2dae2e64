"""Reward models."""

import json

import pytest
import torch
from tiny_models import make_reward_model, make_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from dfpo.rewards.sources import load_function

CPU = torch.device("cpu")


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


def learned_positions(folder, **tokenizer_settings):
    """A judge of learned positions whose tokenizer pads on the left."""
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=300, n_positions=128, n_embd=32, n_layer=2, n_head=2, num_labels=1,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    make_tokenizer(300).save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"padding_side": "left"} | tokenizer_settings
    path.write_text(json.dumps(settings))
    return load_function(str(folder), CPU)[1]


def test_a_score_does_not_depend_on_its_neighbours(tmp_path):
    """Padding on the left moved learned positions: -3.31 alone, -1.79 in a batch (trl#2778)."""
    judge = learned_positions(tmp_path)
    prompts, answers = ["Add 1 + 2: "] * 2, ["3", "a much longer answer than that"]
    together = judge(prompts=prompts, completions=answers)
    alone = [judge(prompts=[p], completions=[a])[0] for p, a in zip(prompts, answers, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together[0] != pytest.approx(together[1], abs=1e-3)


def test_what_a_judge_cannot_read_is_counted_and_told_once(tmp_path, capsys):
    judge = learned_positions(tmp_path / "judge", model_max_length=12)
    capsys.readouterr()
    logged = []

    def score(*answers):
        # <s> and four letters before each answer
        return judge(prompts=["Say:"] * len(answers), completions=list(answers),
                     log_metric=lambda *metric: logged.append(metric))  # fmt: skip

    score("sevenxx", "six")
    assert capsys.readouterr().err == ""
    a, b = score("sevenxxxxA", "sevenxxxxx")[0], score("sevenxxxyA")[0]
    assert a == pytest.approx(b), "the last token stays, which often closes the text"
    assert logged == [("judge/cut", 0), ("judge/cut", 2), ("judge/cut", 1)]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    for word in ("judge", "at most 12 tokens", "2 of 2", "reward/log/judge/cut"):
        assert word in said[0]
