"""Answers of continuous batching are those of ``generate``, drawn with the same uniforms."""

import json

import pytest
import torch

import dfpo
from dfpo.rollout.engines import continuous
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy, logprobs_by_parts
from dfpo.rollout.sampler import Sampler

PROMPTS = ["1 plus 2", "7 minus 3", "force 3 4", "9 plus 9 minus 2"]


@pytest.fixture(scope="module")
def samplers():
    policy = load_policy(SHIPPED_POLICY)
    return [Sampler.of(*policy, engine=name) for name in ("transformers", "continuous")]


@pytest.mark.parametrize("sampled", [False, True])
def test_answers_are_those_of_generate(samplers, sampled):
    draws = torch.rand(4, 24, generator=torch.Generator().manual_seed(3)) if sampled else None
    state = torch.get_rng_state()
    own, paged = (s.answer(PROMPTS, 24, uniforms=draws, temperature=0.8) for s in samplers)
    assert torch.equal(torch.get_rng_state(), state), "nothing global is drawn from or seeded"
    assert len(set(own.lengths)) > 1 and any(own.truncated), "some end, some are cut"
    for name in ("input_ids", "attention_mask", "mask", "truncated"):
        assert torch.equal(getattr(own, name), getattr(paged, name)), name

    assert own.logprobs is None
    temperature = 0.8 if sampled else 1.0
    model = samplers[0].policy
    trainer = logprobs_by_parts(model, own, temperature, 0, entropy=False)["logprobs"]
    torch.testing.assert_close(paged.logprobs, trainer, atol=2e-5, rtol=1e-4)


def test_an_evicted_request_keeps_its_place():
    """Its tokens so far become its prompt, and its position goes on."""
    from transformers.generation.continuous_batching.requests import RequestState

    state = RequestState(request_id="0", initial_tokens=[1, 2, 3], max_new_tokens=9)
    state.generated_tokens = [4, 5]
    assert continuous.position_of(state) == 2
    again = state.create_equivalent_initial_request()
    again.generated_tokens = [6]
    assert again.initial_tokens == [1, 2, 3, 4, 5] and continuous.position_of(again) == 3


def test_a_failed_request_is_one_line(samplers, monkeypatch):
    class Manager:
        def get_result(self, timeout):
            return None

        def is_running(self):
            return False

    with pytest.raises(continuous.EngineError, match="continuous ended before its answers"):
        continuous._collect(Manager(), 2)


def test_it_trains_and_its_weights_are_near_one(tmp_path):
    """The same answers as the other engine's, bit for bit the same again, and its metrics."""
    common = {
        "steps": 2, "critic": {"warmup_steps": 1}, "eval": {"prompts": 0}, "plots": False,
        "runs_dir": str(tmp_path),
    }  # fmt: skip
    size = {"prompts": 2, "samples": 2, "max_new_tokens": 6}
    runs = [
        dfpo.train(rollout=size | {"engine": engine}, name=name, **common)
        for name, engine in (("a", "continuous"), ("b", "continuous"), ("c", "transformers"))
    ]
    paged, again, own = (
        [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
        for run in runs
    )
    for step, same, other in zip(paged, again, own, strict=True):
        for key, value in step.items():
            assert key.startswith("perf") or same[key] == value, key
        assert step["reward/clean"] == other["reward/clean"] and step["tokens"] == other["tokens"]
        assert step["engine/weight"] == pytest.approx(1.0, abs=1e-4)
        assert step["engine/truncated"] == 0.0 and 0.0 <= step["engine/kl"] < 1e-6
        assert "engine/weight" not in other
    assert paged[1]["loss/policy"] == pytest.approx(own[1]["loss/policy"], abs=1e-4)


@pytest.mark.parametrize(
    ("settings", "with_what"),
    [({"lora": {"rank": 2}}, "lora.rank"), ({"dtype": "bfloat16"}, "dtype bfloat16")],
)
def test_what_its_pages_cannot_hold_is_one_line(tmp_path, settings, with_what):
    if "lora" in settings:
        pytest.importorskip("peft")
    with pytest.raises(dfpo.ConfigError, match=f"must be transformers with {with_what}"):
        dfpo.train(rollout={"engine": "continuous"}, runs_dir=str(tmp_path), **settings)
