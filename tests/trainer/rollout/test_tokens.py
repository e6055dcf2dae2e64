"""Prompts to tokens and back, and what ends an answer."""

import types

import pytest
import torch
from tiny_models import make_tokenizer

from dfpo.config import ConfigError
from dfpo.config.types import Samples
from dfpo.rollout.tokens import decode, encode, end_tokens


@pytest.mark.parametrize(
    ("models", "tokenizers", "expected"),
    [(None, 2, [2]), (0, 2, [0, 2]), ([5, 2], 2, [5, 2]), (2, None, [2]), (None, None, [])],
)
def test_both_end_tokens_end_an_answer(models, tokenizers, expected):
    """A base model fine-tuned for chat ends turns by another token than its settings say."""
    model = types.SimpleNamespace(generation_config=types.SimpleNamespace(eos_token_id=models))
    tokenizer = types.SimpleNamespace(eos_token_id=tokenizers)
    assert end_tokens(model, tokenizer) == expected


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('no system role') }}", "{{ messages[0]['nothing']['more'] }}"]
)
def test_a_template_that_raises_is_one_line(template):
    tokenizer = make_tokenizer(300)
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match="chat template refuses") as error:
        encode(tokenizer, [{"role": "system", "content": "be brief"}])
    assert "\n" not in str(error.value)


def test_messages_go_through_the_template_and_text_as_it_is():
    """The tokenizer's words are bytes; its template writes <role>content</s> and adds no <s>."""
    tokenizer = make_tokenizer(300)
    chat = encode(tokenizer, [{"role": "user", "content": "hi"}])
    assert tokenizer.decode(chat) == "<user>hi</s><assistant>"
    assert tokenizer.decode(encode(tokenizer, "hi")) == "<s>hi"


def test_messages_need_a_template():
    with pytest.raises(ConfigError, match="has no chat template, but a prompt is chat messages"):
        encode(make_tokenizer(300, chat=False), [{"role": "user", "content": "hi"}])


def test_answers_are_cut_at_their_length_and_read_without_special_tokens():
    tokenizer = make_tokenizer(300)
    a, b, end = (tokenizer.convert_tokens_to_ids(token) for token in ("a", "b", "</s>"))
    samples = Samples(
        input_ids=torch.tensor([[9, a, b, end], [9, b, 0, 0]]),
        attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        mask=torch.tensor([[1, 1, 1], [1, 0, 0]]).bool(),
        truncated=torch.zeros(2).bool(),
    )
    assert decode(tokenizer, samples) == (["ab", "b"], [[a, b, end], [b]])
