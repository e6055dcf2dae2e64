"""LoRA: one base, adapters of their own, the right reference, what peft reads."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dfpo.__main__ import main
from dfpo.config import ConfigError, build_config
from dfpo.rollout.adapters import CRITIC, FIRST, POLICY, adapter_weights
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy, token_logprobs
from dfpo.run.setup import set_up
from dfpo.run.train import train

peft = pytest.importorskip("peft")

SMALL = {
    "steps": 3, "rollout.prompts": 4, "rollout.samples": 2, "critic.warmup_steps": 1,
    "eval.prompts": 2, "eval.examples": 0, "plots": False, "device": "cpu", "lora.rank": 4,
    "policy.learning_rate": 1e-3, "critic.num_quantiles": 8, "rollout.max_new_tokens": 24,
}  # fmt: skip


def config(tmp_path, **own):
    return build_config({**SMALL, "runs_dir": str(tmp_path / "runs")} | own)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(config(tmp_path_factory.mktemp("lora"), name="one"))


def logits(model):
    ids = torch.arange(3, 20).unsqueeze(0)
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_policy_and_critic_learn_and_the_base_does_not(tmp_path):
    setup = set_up(config(tmp_path), None)
    base = setup.policy.root
    own = {id(p) for p in setup.policy.parameters()} | {id(p) for p in setup.critic.parameters()}
    frozen = {n: p for n, p in base.named_parameters() if id(p) not in own}
    assert len(frozen) == len(list(load_policy(SHIPPED_POLICY)[0].parameters()))
    assert not any(p.requires_grad for p in frozen.values())

    # An adapter begins as nothing: three views, one model.
    for view in (setup.policy, setup.first.policy):
        assert torch.equal(logits(view), logits(load_policy(SHIPPED_POLICY)[0]))
    with torch.no_grad():
        for parameter in adapter_weights(base, CRITIC).values():
            parameter.add_(0.1)
    assert torch.equal(logits(setup.policy), logits(setup.first.policy))

    # Each loss reaches its own adapter alone.
    logprobs, _ = token_logprobs(setup.policy, some_samples(setup), 1.0)
    logprobs.sum().backward()
    assert any(p.grad is not None for p in adapter_weights(base, POLICY).values())
    assert all(p.grad is None for p in adapter_weights(base, CRITIC).values())
    assert all(p.grad is None for p in frozen.values())


def some_samples(setup):
    return setup.sampler.answer(["1 plus 2"], 4)


def test_what_is_saved_is_a_peft_adapter(run):
    """peft on the base gives the logits of the run's policy; merged, plain transformers does."""
    folder = run / "policy"
    assert sorted(p.name for p in folder.glob("adapter*")) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    assert not (folder / "model.safetensors").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
    base = AutoModelForCausalLM.from_pretrained(SHIPPED_POLICY).eval()
    first = logits(base)
    theirs = logits(peft.PeftModel.from_pretrained(base, str(folder)).eval())
    assert (theirs - first).abs().max() > 1e-3, "it learned"
    torch.testing.assert_close(logits(load_policy(folder)[0]), theirs, atol=1e-4, rtol=1e-4)

    plain = run.parent / "plain"
    assert main(["merge", str(run), str(plain)]) == 0
    merged = logits(AutoModelForCausalLM.from_pretrained(plain).eval())
    torch.testing.assert_close(merged, theirs, atol=1e-4, rtol=1e-4)
    assert main(["merge", str(run), str(plain)]) == 2, "never over what is there"


def test_a_resumed_run_is_the_whole_run(run, tmp_path):
    train(config(tmp_path, steps=2, name="parts"))
    settings = config(tmp_path, steps=3)
    assert main(["train", "--resume", str(tmp_path / "runs" / "parts"), "--steps", "3"]) == 0
    assert settings.steps == 3
    for name in ("policy/adapter_model.safetensors", "critic.safetensors"):
        whole, parts = load_file(run / name), load_file(tmp_path / "runs" / "parts" / name)
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_training_goes_on_from_an_adapter_and_is_held_to_it(run, tmp_path):
    """The reference is the adapter that training began from, not the bare base (trl#1340)."""
    again = config(tmp_path, model=str(run / "policy"), **{"policy.kl_coef": 1.0})
    setup = set_up(again, None)
    began = logits(load_policy(run / "policy")[0])
    torch.testing.assert_close(logits(setup.policy), began, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(setup.first.policy), began, atol=1e-4, rtol=1e-4)
    held = adapter_weights(setup.policy.root, FIRST)
    assert held and not any(p.requires_grad for p in held.values())
    more = train(config(tmp_path, model=str(run / "policy"), name="more"))
    first = json.loads((more / "metrics.jsonl").read_text().splitlines()[0])
    assert first["kl"] == pytest.approx(0.0, abs=1e-4)


def test_an_adapter_with_dropout_drops_nothing(run, tmp_path):
    """peft's new layers are in training mode; an answer has one log-probability."""
    adapter = tmp_path / "adapter"
    shutil.copytree(run / "policy", adapter)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_dropout": 0.5}))
    setup = set_up(config(tmp_path, model=str(adapter)), None)
    expected = logits(load_policy(run / "policy")[0])
    for view in (setup.policy, setup.first.policy):
        torch.testing.assert_close(logits(view), expected, atol=1e-4, rtol=1e-4)


ODD = [
    ({"use_dora": True}, "use_dora"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"peft_type": "IA3"}, "peft_type"),
    ({"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, "megatron_config"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ({"bias": "all"}, "bias"),
    ({"r": 10**9}, "r = 1000000000, its weights are of rank 4"),
    ({"r": -1}, "r = -1"),
    ({"rank_pattern": {"q_proj": 10**9}}, "its weights are of rank 4"),
    ({"lora_alpha": float("nan")}, "lora_alpha"),
    ({"base_model_name_or_path": "someone/else"}, "not on this disk"),
    ({"base_model_name_or_path": None}, "not on this disk"),
    ({"target_modules": ["q_proj"]}, "no place for"),
    ({"target_modules": "*"}, ""),
    ({"target_modules": 7}, ""),
    ("[" * 100000, "adapter_config.json"),
]


@pytest.mark.parametrize(("change", "words"), ODD)
@pytest.mark.parametrize("merge", [True, False])
def test_odd_adapters_are_one_line(run, tmp_path, change, words, merge):
    adapter = tmp_path / "adapter"
    shutil.copytree(run / "policy", adapter)
    path = adapter / "adapter_config.json"
    if isinstance(change, dict):
        change = json.dumps(json.loads(path.read_text()) | change)
    path.write_text(change)
    _refused(adapter, words, tmp_path, merge)


@pytest.mark.parametrize("left", [0, 8, 500])
def test_adapters_whose_weights_are_cut_short_are_one_line(run, tmp_path, left):
    adapter = tmp_path / "adapter"
    shutil.copytree(run / "policy", adapter)
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:left])
    _refused(adapter, "adapter_model.safetensors", tmp_path, True)


def test_an_adapter_of_itself_is_one_line(run, tmp_path):
    adapter = tmp_path / "adapter"
    shutil.copytree(run / "policy", adapter)
    path = adapter / "adapter_config.json"
    own = {"base_model_name_or_path": str(adapter)}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    _refused(adapter, "of an adapter", tmp_path, True)


def test_an_adapter_that_lacks_weights_is_named(run, tmp_path):
    """peft leaves what is missing as it was drawn, with a warning."""
    adapter = tmp_path / "adapter"
    shutil.copytree(run / "policy", adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, adapter / "adapter_model.safetensors")
    for merge in (True, False):
        _refused(adapter, "lacks", tmp_path, merge)


def _refused(adapter, words, tmp_path, merge):
    with pytest.raises(ConfigError) as error:
        if merge:
            load_policy(adapter)
        else:
            set_up(config(tmp_path, model=str(adapter)), None)
    said = str(error.value)
    assert words in said and "\n" not in said and len(said) < 800


def test_an_adapter_of_the_output_layer_counts(tmp_path):
    """Its log-probabilities come from the adapted layer, in parts too (trl#7017)."""
    from dfpo.rollout import logprobs

    setup = set_up(config(tmp_path, **{"lora.targets": "lm_head,q_proj"}), None)
    weights = adapter_weights(setup.policy.root, POLICY)
    assert any("lm_head" in name for name in weights)
    with torch.no_grad():
        for parameter in weights.values():
            parameter.add_(0.3)
    samples = some_samples(setup)
    at_once, _ = token_logprobs(setup.policy, samples, 1.0)
    first, _ = token_logprobs(setup.first.policy, samples, 1.0)
    assert (at_once - first).abs().max() > 1e-3
    kept = logprobs.LOGITS_AT_ONCE
    try:
        logprobs.LOGITS_AT_ONCE = 80
        in_parts, _ = token_logprobs(setup.policy, samples, 1.0)
    finally:
        logprobs.LOGITS_AT_ONCE = kept
    torch.testing.assert_close(in_parts, at_once)


def test_wrong_settings_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match="shard"):
        config(tmp_path, shard=True)
    with pytest.raises(ConfigError, match="targets"):
        set_up(config(tmp_path, **{"lora.targets": "nothing_like_it"}), None)


def test_evaluation_is_of_the_adapter_and_not_of_its_base(run, tmp_path, capsys):
    """Where the two say other things: of a run, and of its policy's directory."""
    changed = tmp_path / "run"
    shutil.copytree(run, changed)
    weights = load_file(changed / "policy" / "adapter_model.safetensors")
    draws = torch.Generator().manual_seed(0)
    weights = {k: v + 0.5 * torch.randn(v.shape, generator=draws) for k, v in weights.items()}
    save_file(weights, changed / "policy" / "adapter_model.safetensors")
    assert main(["merge", str(changed / "policy"), str(tmp_path / "merged")]) == 0

    def answers(target):
        capsys.readouterr()
        words = ["eval", str(target), "--json", "--show", "4", "--rollout.max-new-tokens", "8"]
        assert main(words) == 0
        return json.loads(capsys.readouterr().out)["answers"]

    merged = answers(tmp_path / "merged")
    assert answers(SHIPPED_POLICY) != merged
    assert answers(changed) == answers(changed / "policy") == merged
