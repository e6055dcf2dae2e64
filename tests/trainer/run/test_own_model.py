"""A user's model, data and reward through the command line."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import FAMILIES, make_model, make_reward_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from dfpo.__main__ import main
from dfpo.config import build_config
from dfpo.rollout.policy import load_policy, token_logprobs
from dfpo.rollout.sampler import Sampler
from dfpo.run.defaults import complete

REWARD = """
def vowels(prompts, completions, completion_ids, target, **columns):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(x in "aeiou" for x in text) / len(ids) for text, ids in zip(texts, completion_ids)]

def sparse(completion_ids, **columns):
    return [None if ids[0] % 2 else float(ids[0] % 4) for ids in completion_ids]

def late_nan(completions, state=[], **columns):
    state.append(1)
    return [float("nan") if len(state) > 1 else 0.5] * len(completions)

def late_raise(completions, state=[], **columns):
    state.append(1)
    if len(state) > 1:
        raise ValueError("the judge is away")
    return [0.5] * len(completions)

def raises(**columns):
    raise KeyError("gold")

def short(completions, **columns):
    return [1.0]

def text(completions, **columns):
    return ["good"] * len(completions)

def nan(completions, **columns):
    return [float("nan")] * len(completions)
"""
SMALL = ["--steps", "2", "--critic.warmup-steps", "1", "--rollout.prompts", "3"]
SMALL += ["--rollout.samples", "2", "--rollout.max-new-tokens", "8", "--critic.num-quantiles", "5"]
SMALL += ["--eval.prompts", "2", "--eval.examples", "1", "--plots", "false"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Prompts, chats, rewards and one model of each family."""
    folder = tmp_path_factory.mktemp("files")
    texts = [{"prompt": f"Count {'o' * i}: ", "target": i} for i in range(1, 7)]
    chats = [t | {"prompt": [{"role": "user", "content": t["prompt"]}]} for t in texts]
    for name, rows in (("texts", texts), ("chats", chats)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "reward.py").write_text(REWARD)
    for family in FAMILIES:
        make_model(folder / family, family)
    return folder


def own(files, family="llama", data="texts", reward="vowels"):
    return [
        "--model", str(files / family), "--data", str(files / f"{data}.jsonl"),
        "--reward", f"{files / 'reward.py'}:{reward}",
    ]  # fmt: skip


def train(folder, *words, name="run"):
    assert main(["train", *SMALL, "--runs-dir", str(folder), "--name", name, *words]) == 0
    return folder / name


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("family", "data"), [("llama", "texts"), ("qwen2", "chats"), ("gemma", "texts")]
)
def test_families_train_and_come_out_as_they_went_in(files, tmp_path, family, data):
    run = train(tmp_path, *own(files, family, data), "--policy.learning-rate", "1e-2")
    found = records(run)
    assert [m["step"] for m in found] == [0, 1]
    assert found[0]["kl"] == 0 and found[1]["loss/policy"] is not None
    model = AutoModelForCausalLM.from_pretrained(run / "policy")
    first = AutoModelForCausalLM.from_pretrained(files / family)
    assert type(model) is type(first)
    assert not torch.equal(model.get_input_embeddings().weight, first.get_input_embeddings().weight)
    tokenizer = AutoTokenizer.from_pretrained(run / "policy")
    assert len(tokenizer) == len(AutoTokenizer.from_pretrained(files / family))
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(files / family).chat_template
    summary = json.loads((run / "summary.json").read_text())
    assert summary["metric"] == "reward"
    assert summary["after"]["train"] == pytest.approx(
        summary["domains"]["data"]["after"]["train"]["sampled"]
    )
    assert load_file(run / "critic.safetensors")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_sampling_follows_the_trained_distribution(files, family):
    """What a model's own generation settings ask for must not bend the sampling, and left padding
    must not change what a prompt is answered."""
    model, tokenizer = load_policy(files / family)
    model.generation_config = GenerationConfig(
        eos_token_id=2, repetition_penalty=5.0, temperature=0.1, top_k=1, no_repeat_ngram_size=1
    )
    kept = model.generation_config.to_dict()
    prompts = ["Count ooo: ", "a much longer prompt that pads the other one: "]
    samples = Sampler.of(model, tokenizer).answer(prompts, 12)
    assert model.generation_config.to_dict() == kept
    for i, prompt in enumerate(prompts):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        answer = samples.input_ids[i, -12:][samples.mask[i]]
        for token in answer:
            with torch.no_grad():
                assert model(ids).logits[0, -1].argmax() == token
            ids = torch.cat([ids, token.view(1, 1)], 1)
    with torch.no_grad():
        together, _ = token_logprobs(model, samples, 1.0)
        alone = model(ids).logits[0, :-1].log_softmax(-1)
    length = int(samples.mask[1].sum())
    expected = alone.gather(1, ids[0, 1:, None])[-length:, 0]
    torch.testing.assert_close(together[1][samples.mask[1]], expected, atol=1e-4, rtol=1e-4)


def test_evaluation_split_several_rewards_and_trackers(files, tmp_path):
    """One run with what the others leave out."""
    rows = [
        {"prompt": f"Say {x}: ", "target": 1, "domain": x, "split": "ood" if i % 2 else "id"}
        for i, x in enumerate("aabb")
    ]
    path = tmp_path / "eval.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reward_model = make_reward_model(tmp_path / "judge")
    run = train(
        tmp_path, *own(files), str(reward_model), "--eval-data", str(path),
        "--reward.weights", "1", "0.25", "--noise", "flip=0.5",
        "--trackers", "tensorboard", "--plots", "true",
    )  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["domains"]) == {"a", "b"}
    assert set(summary["domains"]["a"]["after"]) == {"id", "ood"}
    found = records(run)[0]
    total = found["reward/of/vowels"] + 0.25 * found["reward/of/judge"]
    assert found["reward/clean"] == pytest.approx(total, abs=1e-5)
    _check_tensorboard(run, found)


def _check_tensorboard(run, found):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    scalar = events.Scalars("reward/clean")[0]
    assert (scalar.step, scalar.value) == (0, pytest.approx(found["reward/clean"]))
    assert {"plots/calibration", "plots/training"} <= set(events.Tags()["images"])
    assert events.Images("plots/calibration")[0].width > 400


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ("raises", ["raises", "KeyError", "gold", "reward.py, line"]),
        ("short", ["short", "1 scores for 3 answers"]),
        ("text", ["text", "'good'"]),
        ("nan", ["nan"]),
        ("absent", ["absent"]),
    ],
)
def test_a_bad_reward_is_found_before_anything_is_written(files, tmp_path, capsys, reward, words):
    runs = tmp_path / "runs"
    assert main(["train", *SMALL, "--runs-dir", str(runs), *own(files, reward=reward)]) == 2
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if line.startswith("dfpo train: error: reward:")]
    assert len(lines) == 1 and "Traceback" not in "".join(said)
    for word in words:
        assert word in lines[0]
    assert not runs.exists()


@pytest.mark.parametrize(
    ("reward", "words"),
    [("late_nan", ["returned nan"]), ("late_raise", ["the judge is away", "reward.py, line"])],
)
def test_a_run_without_valid_rewards_stops_with_a_checkpoint(
    files, tmp_path, capsys, reward, words
):
    more = ["--steps", "9", "--max-unscored-steps", "2", "--eval.prompts", "0"]
    status = main(
        ["train", *SMALL, "--runs-dir", str(tmp_path), "--name", "run", *more]
        + own(files, reward=reward)
    )
    said = capsys.readouterr().err
    assert status == 1
    for word in ["not one valid reward in 2 steps", "--resume", *words]:
        assert word in said
    assert "Traceback" not in said
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-000001", "step-000002"]
    found = records(tmp_path / "run")
    assert [m["reward/invalid"] for m in found] == [6, 6]
    assert "loss/critic" not in found[0]


def test_unscored_answers_are_counted(files, tmp_path):
    run = train(tmp_path, *own(files, reward="sparse"), "--eval.prompts", "0")
    found = records(run)
    assert sum(m["reward/unscored"] for m in found) > 0
    assert all(m["reward/invalid"] == 0 for m in found)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["training"]["unscored"] == sum(m["reward/unscored"] for m in found)


def test_range_of_rewards_is_measured(files):
    policy, _ = load_policy(files / "llama")

    def bounds(values, **settings):
        config = complete(
            build_config({"algorithm": "dfpo-mean"} | settings), policy, torch.tensor(values)
        )
        return config.reward.low, config.reward.high, config.critic.clip_returns

    own_reward = {"reward": "a.py:f"}
    assert bounds([0.0, 1.0, 1.0], **own_reward) == (0.0, 1.0, True)
    assert bounds([0.0, 0.5, 1.0], **own_reward) == (0.0, 1.0, False)
    # mean 5, standard deviation 3: 5 -+ 6
    assert bounds([2.0, 8.0], **own_reward) == (-1.0, 11.0, False)
    assert bounds([7.0, 7.0], **own_reward) == (6.0, 8.0, False)
    given = {"reward.low": "-2", "reward.high": "2"}
    assert bounds([9.0], **own_reward, **given) == (-2.0, 2.0, True)
    assert bounds([0.25], task="reasoning_gym:chain_sum") == (0.0, 1.0, True)


def test_wrong_models_and_prompts_are_one_line(files, tmp_path, capsys):
    """What is wrong, where, and what it must be; status 2; nothing written."""
    no_tokenizer = tmp_path / "no_tokenizer"
    shutil.copytree(files / "llama", no_tokenizer)
    for path in no_tokenizer.glob("*token*"):
        path.unlink()
    no_weights = tmp_path / "no_weights"
    shutil.copytree(files / "llama", no_weights)
    (no_weights / "model.safetensors").unlink()
    trunk = tmp_path / "trunk"
    AutoModelForCausalLM.from_pretrained(files / "llama").base_model.save_pretrained(trunk)
    no_chat = make_model(tmp_path / "no_chat", chat=False)
    long = tmp_path / "long.jsonl"
    long.write_text('{"prompt": "short", "target": 1}\n' + json.dumps({"prompt": "o" * 130}) + "\n")
    cases = [
        (["--model", str(no_tokenizer)], ["model", "no_tokenizer", "tokenizer"]),
        (["--model", str(no_weights)], ["model", "no_weights"]),
        (["--model", str(trunk)], ["model", "trunk", "lm_head"]),
        (["--model", str(tmp_path / "absent.gguf")], ["absent.gguf"]),
        (["--model", str(no_chat), "--data", str(files / "chats.jsonl")], ["chat template"]),
        (["--data", str(long)], ["prompt 2", "long.jsonl", "131 tokens", "at most 120"]),
        (["--trackers", "tensorbord"], ["did you mean tensorboard?"]),
        (["--reward.weights", "1", "2"], ["reward.weights", "1 rewards"]),
        (["--task", "suite"], ["task"]),
    ]
    for flags, words in cases:
        runs = tmp_path / "runs"
        assert main(["train", *own(files), *SMALL, "--runs-dir", str(runs), *flags]) == 2
        said = [x for x in capsys.readouterr().err.splitlines() if x.startswith("dfpo train:")]
        assert len(said) == 1
        for word in words:
            assert word in said[0], (flags, said)
        assert not runs.exists()


def test_a_model_that_names_no_architecture_trains(files, tmp_path, capsys):
    """As none does that is read from a GGUF file."""
    nameless = tmp_path / "nameless"
    shutil.copytree(files / "llama", nameless)
    config = json.loads((nameless / "config.json").read_text())
    del config["architectures"]
    (nameless / "config.json").write_text(json.dumps(config))
    folder = ["--runs-dir", str(tmp_path), "--steps", "0", "--eval.prompts", "0"]
    assert main(["train", *folder, *own(files), "--model", str(nameless)]) == 0
    assert "LlamaForCausalLM of" in capsys.readouterr().out


def test_reasoning_gym_trains(tmp_path):
    task = "reasoning_gym:chain_sum,max_terms=2,max_digits=1"
    run = train(
        tmp_path, "--model", str(make_model(tmp_path / "m", context=512)), "--task", task,
        "--eval.prompts", "3",
    )  # fmt: skip
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["domains"]) == ["chain_sum"] and 0 <= summary["after"]["id"] <= 1
    assert "task: reasoning_gym:chain_sum" in (run / "config.yaml").read_text()
