"""``dfpo memory``: what a run holds, against sums by hand; bench/memory.py measures."""

import json

import pytest
from transformers import LlamaConfig

from dfpo.__main__ import main
from dfpo.config import build_config
from dfpo.config.algorithms import ALGORITHMS
from dfpo.rollout import logprobs
from dfpo.rollout.policy import SHIPPED_POLICY
from dfpo.run.memory import foretell

SHAPE = LlamaConfig(
    vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
)  # fmt: skip
# Embedding and head, per layer q and o, k and v, three of the MLP and two norms, and a last norm.
LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
TRUNK = 64_000 + 2 * LAYER + 64
POLICY = TRUNK + 64_000


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("shape") / "config.json"
    SHAPE.to_json_file(path)
    return path


@pytest.fixture
def foretold(config, capsys):
    def call(*words):
        sizes = ["--answers", "8", "--length", "16", "--prompt-length", "4", "--device", "cuda"]
        kind = ["--dtype", "float32", "--json"]
        assert main(["memory", "--model", str(config), *sizes, *kind, *words]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def test_weights_and_optimisers_by_hand(foretold):
    found = foretold("--algorithm", "ppo")
    critic = TRUNK + 64 + 1  # a linear head
    assert found["parameters"] == POLICY
    assert found["trained"] == {"policy": POLICY, "critic": critic}
    held = found["held"]
    assert held["trained weights"] == 4 * (POLICY + critic)
    assert held["frozen weights"] == 4 * POLICY, "the first policy"
    assert held["Adam"] == 8 * (POLICY + critic)
    assert found["base"] == 0, "a GPU's memory holds no Python"
    assert found["peak"] == sum(held.values()) + max(found["stages"].values())


def test_without_a_critic_there_is_none(foretold):
    found = foretold("--algorithm", "grpo")
    assert found["trained"]["critic"] == 0
    assert set(found["stages"]) == {"sampling", "log-probabilities", "policy update"}
    # Gradients, and logits of 8 x 16 tokens as they are, scaled, and normalised.
    assert found["stages"]["policy update"] > 4 * POLICY + 3 * 4 * 8 * 16 * 1000


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_every_algorithm_is_foretold(algorithm):
    """Each critic, loss and advantage runs on shapes alone."""
    settings = {"algorithm": algorithm, "device": "cpu", "reward.low": 0, "reward.high": 1}
    config = build_config(settings | {"rollout.max_new_tokens": 16})
    found = foretell(config, SHAPE, answers=8, prompt=4, processes=1, base=1)
    assert found.parameters == POLICY and found.unreturned >= 0
    assert found.highest.together > 4 * POLICY, "gradients at least"


def test_what_saves_memory_saves_it(foretold):
    plain = foretold("--algorithm", "dfpo")
    parts = foretold("--algorithm", "dfpo", "--micro-tokens", "40")  # two answers at once
    again = foretold("--algorithm", "dfpo", "--gradient-checkpointing", "true")
    assert (plain["shape"]["rows"], parts["shape"]["rows"], parts["shape"]["passes"]) == (8, 2, 4)
    for less in (parts, again):
        assert less["held"] == plain["held"]
        for stage in ("critic update", "policy update"):
            assert less["stages"][stage] < plain["stages"][stage]


def test_adapters_leave_the_base_without_a_gradient(foretold):
    found = foretold("--algorithm", "grpo", "--lora.rank", "4")
    # A and B of each linear layer: q and o 64 + 64, k and v 64 + 32, three of the MLP 64 + 128.
    adapter = 4 * 2 * (2 * 128 + 2 * 96 + 3 * 192)
    assert found["trained"]["policy"] == adapter and found["parameters"] == POLICY
    assert found["held"]["frozen weights"] == 4 * POLICY, "one base for policy and reference"
    assert found["held"]["Adam"] == 8 * adapter

    half = foretold("--algorithm", "grpo", "--lora.rank", "4", "--dtype", "bfloat16")
    assert half["held"]["frozen weights"] == 2 * POLICY
    assert half["held"]["trained weights"] == 4 * adapter


def test_shares_of_several_processes(foretold):
    whole, shares = foretold("--processes", "4"), foretold("--processes", "4", "--shard")
    for name in ("trained weights", "frozen weights", "Adam"):
        assert shares["held"][name] == whole["held"][name] // 4
    assert whole["shape"]["rows"] == 2, "each computes its answers"


def test_a_table_names_the_stage_of_the_peak(config, capsys):
    assert main(["memory", "--model", str(config.parent), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    size = f"{POLICY / 1e6:.4g} M"
    assert lines[0].startswith(f"dfpo, {size} parameters of which {size} learn, 64 answers of 512")
    assert "Python and libraries" in lines[3] and lines[-1].startswith("peak")


def test_what_holds_no_configuration_is_one_line(tmp_path, capsys):
    assert main(["memory", "--model", str(tmp_path)]) == 2
    assert "must be a directory with a config.json, or that file" in capsys.readouterr().err
    assert main(["memory"]) == 2
    assert "model: is not given" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert main(["memory", "--model", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "holds no configuration of a causal language model" in error and error.count("\n") == 1


def test_logits_in_parts_are_foretold(monkeypatch, capsys):
    """As of every model with a large vocabulary."""
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 2000)
    words = ["--model", str(SHIPPED_POLICY), "--answers", "4", "--length", "16"]
    assert main(["memory", "--algorithm", "grpo", *words]) == 0
    assert "GB" in capsys.readouterr().out


def test_a_cpu_makes_fewer_logits_at_once():
    """64 answers of 32 tokens over 32,000 words are 262 MB of logits; a CPU makes 34 MB."""
    large = LlamaConfig(
        vocab_size=32_000, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1,
    )  # fmt: skip
    peaks = [
        foretell(
            build_config({
                "algorithm": "grpo", "device": device, "dtype": "float32", "micro_tokens": 8192,
                "rollout.max_new_tokens": 32,
            }),
            large, answers=64, prompt=4, processes=1, base=0,
        ).stages["log-probabilities"]
        for device in ("cpu", "cuda")
    ]  # fmt: skip
    assert sum(vars(peaks[0]).values()) < 0.5 * sum(vars(peaks[1]).values())
