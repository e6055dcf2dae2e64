"""The engine's calls, against a stand-in whose signatures are vLLM's where its sources are:
installed, or unpacked into the folder that DFPO_VLLM_SOURCES names (its wheel is a zip)."""

import ast
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tiny_models import make_model

import dfpo
from dfpo.rollout.decoding import Decoding
from dfpo.rollout.engines import EngineError, vllm
from dfpo.rollout.policy import load_policy

CALLS = []  # (method, keywords) of the stand-in, in order


class LLM:
    """Answers with the last token of a prompt and the end token."""

    def __init__(self, **settings):
        CALLS.append(("LLM", settings))
        # What a real one reads from the folder, which is gone afterwards.
        assert {"config.json", "tokenizer.json"} <= {
            p.name for p in Path(settings["model"]).iterdir()
        }

    def generate(self, prompts, sampling_params, **keywords):
        CALLS.append(("generate", keywords))
        answers = [[prompt["prompt_token_ids"][-1], 2] for prompt in prompts]
        answers[0] = answers[0][:1]
        return [SimpleNamespace(outputs=[self._output(ids)]) for ids in answers]

    @staticmethod
    def _output(ids):
        # The chosen token and, as vLLM may, another one beside it.
        told = [
            {t: SimpleNamespace(logprob=-0.1 * t), 7: SimpleNamespace(logprob=-9.0)} for t in ids
        ]
        return SimpleNamespace(token_ids=tuple(ids), logprobs=told)

    def collective_rpc(self, method, **keywords):
        names = [name for name, _ in keywords["kwargs"]["weights_iterator"]]
        CALLS.append((method, {"names": names}))

    def __getattr__(self, name):
        return lambda **keywords: CALLS.append((name, keywords))


class SamplingParams(SimpleNamespace):
    def __init__(self, **keywords):
        CALLS.append(("SamplingParams", keywords))


@pytest.fixture
def engine(tmp_path, monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    module.__spec__ = importlib.util.spec_from_loader("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    CALLS.clear()
    return vllm.build(*load_policy(make_model(tmp_path / "model")), 0.25)


def names():
    return [name for name, _ in CALLS if name != "SamplingParams"]


def generate(engine, uniforms=None):
    return engine.generate([[1, 5], [1, 2, 6]], 4, uniforms=uniforms, temperature=0.5)


def test_tokens_and_their_logprobs_come_back(engine):
    made = generate(engine)
    assert made.tokens.tolist() == [[5, 0], [6, 2]]
    torch.testing.assert_close(made.logprobs, torch.tensor([[-0.5, 0.0], [-0.6, -0.2]]))


def test_it_wakes_with_the_newest_weights_and_sleeps(engine):
    generate(engine)
    assert names() == ["LLM", "reload_weights", "reset_prefix_cache", "generate"]
    assert dict(CALLS)["reload_weights"]["names"] == list(engine.policy.state_dict())

    CALLS.clear()
    generate(engine)  # another turn of the same step
    assert names() == ["generate"]

    CALLS.clear()
    engine.rest()
    engine.rest()
    engine.update()
    generate(engine)
    assert names() == [
        "sleep", "wake_up", "reload_weights", "reset_prefix_cache", "wake_up", "generate",
    ]  # fmt: skip
    woken = [keywords["tags"] for name, keywords in CALLS if name == "wake_up"]
    assert woken == [["weights"], ["kv_cache"]]


def test_requests_have_seeds_of_their_own(engine):
    draws = torch.tensor([[0.5, 0.25, 0.1, 0.1], [2**-24, 0.0, 0.9, 0.9]])
    generate(engine, draws)
    asked = [keywords for name, keywords in CALLS if name == "SamplingParams"]
    assert [a["seed"] for a in asked] == [2**23 + (2**22 << 24), 1]
    assert all(a["temperature"] == 0.5 and a["max_tokens"] == 4 for a in asked)
    CALLS.clear()
    generate(engine)
    greedy = [keywords for name, keywords in CALLS if name == "SamplingParams"]
    assert [(a["seed"], a["temperature"]) for a in greedy] == [(None, 0.0)] * 2
    assert all((a["top_p"], a["top_k"]) == (1.0, 0) for a in greedy)


def test_evaluation_narrows_what_is_drawn_from(engine):
    asked = {"uniforms": torch.rand(1, 4), "temperature": 1.0, "decoding": Decoding(0.9, 20)}
    engine.generate([[1, 5]], 4, **asked)
    (told,) = [keywords for name, keywords in CALLS if name == "SamplingParams"]
    assert (told["top_p"], told["top_k"]) == (0.9, 20)


def test_what_vllm_raises_is_one_line(engine, monkeypatch):
    def broken(*arguments, **keywords):
        raise ValueError("no\nroom")

    monkeypatch.setattr(LLM, "generate", broken)
    with pytest.raises(EngineError, match="rollout.engine: vllm failed: ValueError: no room"):
        generate(engine)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vllm is installed")
def test_without_vllm_one_line_says_what_to_install(tmp_path):
    with pytest.raises(dfpo.ConfigError, match=r"pip install 'dfpo\[vllm\]'"):
        dfpo.train(rollout={"engine": "vllm"}, runs_dir=str(tmp_path))


def sources():
    if folder := os.environ.get("DFPO_VLLM_SOURCES"):
        return Path(folder) / "vllm"
    spec = importlib.util.find_spec("vllm")
    return Path(spec.origin).parent if spec and spec.origin else None


def members(path, name):
    """(functions by name, annotated fields) of a class in a file."""
    tree = ast.parse((sources() / path).read_text())
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name).body
    functions = {n.name: n for n in body if isinstance(n, ast.FunctionDef)}
    return functions, {n.target.id for n in body if isinstance(n, ast.AnnAssign)}


def takes(function):
    arguments = function.args
    return {a.arg for a in (*arguments.args, *arguments.kwonlyargs)}


@pytest.mark.skipif(sources() is None, reason="vLLM's sources are not here: DFPO_VLLM_SOURCES")
def test_vllm_takes_what_it_is_given(engine):
    generate(engine, torch.rand(2, 4))
    engine.rest()
    generate(engine)
    functions, _ = members("entrypoints/llm.py", "LLM")
    _, settings = members("engine/arg_utils.py", "EngineArgs")
    _, sampling = members("sampling_params.py", "SamplingParams")
    known = {
        "LLM": takes(functions["__init__"]) | settings,  # further keywords are EngineArgs'
        "SamplingParams": sampling,
    } | {name: takes(functions[name]) for name in ("generate", "sleep", "wake_up")}
    for name, keywords in CALLS:
        if name in known:
            assert set(keywords) <= known[name], name

    assert {"method", "kwargs"} <= takes(functions["collective_rpc"])
    assert "reset_prefix_cache" in functions
    runner, _ = members("v1/worker/gpu_model_runner.py", "GPUModelRunner")
    assert "weights_iterator" in takes(runner["reload_weights"])
    worker, _ = members("v1/worker/gpu_worker.py", "Worker")
    assert "reload_weights" in worker
    _, output = members("outputs.py", "CompletionOutput")
    assert {"token_ids", "logprobs"} <= output
    assert "logprob" in members("logprobs.py", "Logprob")[1]
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" in (sources() / "envs.py").read_text()
    assert '"processed_logprobs"' in (sources() / "config/model.py").read_text()
