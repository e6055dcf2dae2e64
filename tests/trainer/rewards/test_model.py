"""Reward models."""

import pytest
import torch
from tiny_models import make_reward_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

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
