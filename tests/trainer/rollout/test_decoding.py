"""Top-p, top-k and stop strings, by hand and against transformers' own sampling."""

import pytest
import torch
from tiny_models import make_model, make_tokenizer

from dfpo.rollout import policy
from dfpo.rollout.decoding import Decoding
from dfpo.rollout.engines.hf_generate import HFGenerate, _CounterSampler

PROBABILITIES = torch.tensor([[0.1, 0.4, 0.2, 0.3]])


@pytest.mark.parametrize(
    ("decoding", "kept"),
    [
        (Decoding(), {0, 1, 2, 3}),
        (Decoding(top_k=2), {1, 3}),
        (Decoding(top_p=0.75), {1, 2, 3}),  # .4 + .3 is below .75, with .2 it is above
        (Decoding(top_p=0.65), {1, 3}),
        (Decoding(top_k=3, top_p=0.4), {1}),
    ],
)
def test_what_is_left_to_draw_from(decoding, kept):
    draws = torch.linspace(0.001, 0.999, 400).unsqueeze(-1)
    scores = PROBABILITIES.log().repeat(400, 1)
    sampler = _CounterSampler(draws, 1.0, 0, decoding)
    chosen = sampler(torch.zeros(400, 0, dtype=torch.int64), scores).argmax(-1)
    assert set(chosen.tolist()) == kept
    # In the proportions that they had.
    left = torch.tensor([0.1, 0.4, 0.2, 0.3])[sorted(kept)]
    shares = torch.bincount(chosen, minlength=4)[sorted(kept)] / 400
    torch.testing.assert_close(shares, left / left.sum(), atol=0.01, rtol=0)


def test_the_first_stop_string_counts_and_is_left_out():
    tokenizer = make_tokenizer(300)
    ids = tokenizer("one. two; three", add_special_tokens=False)["input_ids"]
    text, kept = Decoding(stop=(";", ". ")).cut(tokenizer, "one. two; three", ids)
    assert text == "one" and tokenizer.decode(kept) == "one. "
    assert Decoding(stop=("#",)).cut(tokenizer, "one", ids[:3]) == ("one", ids[:3])


@pytest.mark.parametrize("leaving", [False, True])
def test_no_more_is_drawn_than_to_the_last_stop(tmp_path, monkeypatch, leaving):
    """Rows that leave the batch, as of a large model, and rows that wait for each other."""
    monkeypatch.setattr(HFGenerate, "_may_leave", lambda self, cache: leaving)
    model, tokenizer = policy.load_policy(make_model(tmp_path / "m", "llama"))
    engine = HFGenerate(model, tokenizer)
    prompts = [tokenizer(text)["input_ids"] for text in ("a", "bc", "d")]
    uniforms = torch.rand(3, 40, generator=torch.Generator().manual_seed(0))
    whole = engine.generate(prompts, 40, uniforms=uniforms, temperature=1.0).tokens

    # A byte that each answer holds after a while.
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in whole.tolist()]
    steps = [[tokenizer.decode(row[:n]) for n in range(41)] for row in whole.tolist()]
    word = min(set.intersection(*(set(text) - {"\ufffd"} for text in texts)))
    stop = Decoding(stop=(word,))
    cut = engine.generate(prompts, 40, uniforms=uniforms, temperature=1.0, decoding=stop).tokens

    first = [next((n for n, text in enumerate(row) if word in text)) for row in steps]
    assert cut.shape[1] == max(first) < 40
    for row, count in enumerate(first):
        assert cut[row, :count].tolist() == whole[row, :count].tolist()
