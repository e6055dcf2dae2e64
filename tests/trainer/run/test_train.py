"""The loop end to end, through the command line, on runs of a few steps."""

import json

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dfpo.__main__ import main
from dfpo.rollout.policy import SHIPPED_POLICY

SMALL = ["--steps", "3", "--critic.warmup-steps", "1", "--eval.prompts", "4"]
SMALL += ["--rollout.prompts", "3", "--rollout.samples", "2"]
SMALL += ["--plots", "false", "--eval.examples", "0"]


def run(folder, *flags):
    name = f"run{len(list(folder.iterdir()))}"
    status = main(["train", *SMALL, "--runs-dir", str(folder), "--name", name, *flags])
    assert status == 0
    return folder / name


def read(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def reproducible(run):
    """Metrics without what depends on the machine."""
    return [{k: v for k, v in m.items() if not k.startswith("perf/")} for m in read(run)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    drawn = ["--plots", "true", "--eval.examples", "4"]
    return run(tmp_path_factory.mktemp("runs"), "--noise", "flip=0.5", *drawn)


def test_a_run_leaves_what_readme_promises(finished):
    metrics = read(finished)
    assert [m["step"] for m in metrics] == [0, 1, 2]
    for key in ("reward/noisy", "reward/clean", "kl", "value/explained_variance", "loss/critic"):
        assert key in metrics[0]
    assert "loss/policy" not in metrics[0], "the first step warms the critic up"
    assert "loss/policy" in metrics[1]
    assert any(m["reward/corrupted"] > 0 for m in metrics)

    summary = json.loads((finished / "summary.json").read_text())
    for when in ("before", "after"):
        assert 0 <= summary[when]["id"] <= 1 and 0 <= summary[when]["ood"] <= 1
    mean = sum(d["before"]["id"]["sampled"] for d in summary["domains"].values()) / 3
    assert summary["before"]["id"] == pytest.approx(mean)
    assert summary["seconds"] > 0 and summary["cpu_seconds"] > 0

    assert {"training.png", "accuracy.png", "value_fan.png", "calibration.png"} <= {
        path.name for path in (finished / "plots").iterdir()
    }
    critic = safetensors.torch.load_file(finished / "critic.safetensors")
    assert any(key.startswith("head.") for key in critic)


def test_the_policy_loads_and_has_moved(finished):
    policy = AutoModelForCausalLM.from_pretrained(finished / "policy")
    tokenizer = AutoTokenizer.from_pretrained(finished / "policy")
    first = AutoModelForCausalLM.from_pretrained(SHIPPED_POLICY)
    moved = [
        not torch.equal(a, b) for a, b in zip(policy.parameters(), first.parameters(), strict=True)
    ]
    assert all(moved)
    ids = tokenizer("math units 1 tens 2 + units 3 tens 4 ?", return_tensors="pt")["input_ids"]
    assert policy.generate(ids, max_new_tokens=4).shape[1] > ids.shape[1]


def test_same_command_same_metrics(finished, tmp_path):
    again = run(tmp_path, "--noise", "flip=0.5")
    assert reproducible(again) == reproducible(finished)
    for name in ("policy/model.safetensors", "critic.safetensors"):
        assert (again / name).read_bytes() == (finished / name).read_bytes()


def test_config_starts_the_same_run(finished, tmp_path):
    status = main(
        ["train", "--config", str(finished / "config.yaml"), "--runs-dir", str(tmp_path),
         "--name", "again"]
    )  # fmt: skip
    assert status == 0
    assert reproducible(tmp_path / "again") == reproducible(finished)


@pytest.mark.parametrize("algorithm", ["ppo", "dfpo-paper"])
def test_arms_share_their_draws(finished, tmp_path, algorithm):
    """Before the policies part, arms of one seed see the same answers and the same noise."""
    other = read(run(tmp_path, "--noise", "flip=0.5", "--algorithm", algorithm))
    ours = read(finished)
    for key in ("reward/noisy", "reward/clean", "response_length", "entropy", "kl"):
        assert [m[key] for m in other[:2]] == [m[key] for m in ours[:2]]
    assert other[0]["loss/critic"] != ours[0]["loss/critic"]
    assert all(torch.isfinite(torch.tensor(m["loss/critic"])) for m in other)


def test_noise_leaves_evaluation_alone(finished, tmp_path):
    plain = run(tmp_path, "--steps", "0")
    before = json.loads((plain / "summary.json").read_text())
    noisy = json.loads((finished / "summary.json").read_text())
    assert before["before"] == noisy["before"] == before["after"]


def test_several_minibatches_and_epochs(tmp_path):
    metrics = read(run(tmp_path, "--policy.minibatches", "2", "--policy.epochs", "2",
                       "--policy.learning-rate", "1e-3"))  # fmt: skip
    assert metrics[2]["policy/ratio_max"] > 1.0, "later minibatches are off policy"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "-1"], ["steps", "-1"]),
        (["--noise", "flip=2"], ["noise", "flip=2"]),
        (["--algorithm", "pppo"], ["algorithm", "did you mean ppo?"]),
        (["--stesp", "1"], ["--stesp", "did you mean --steps?"]),
        (["--config", "absent.yaml"], ["absent.yaml"]),
        (["--device", "tpu"], ["device", "tpu"]),
        (["--model", "no/such/dir"], ["model", "no/such/dir"]),
    ],
)
def test_wrong_input_is_one_line_and_status_2(tmp_path, capsys, flags, words):
    runs = tmp_path / "runs"
    try:
        status = main(["train", "--runs-dir", str(runs), *flags])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for word in words:
        assert word in message
    assert not runs.exists()


def test_a_long_run_keeps_no_more_than_a_short_one(tmp_path, monkeypatch, capsys):
    """Memory and checkpoints: of its last steps alone, whatever is resumed. That the policy has
    drifted is said once."""
    monkeypatch.setattr("dfpo.run.train.RECORDED_STEPS", 2)
    monkeypatch.setattr("dfpo.run.diagnostics.FAR", -1e9)
    monkeypatch.setattr("dfpo.run.diagnostics.FAR_PER_TOKEN", -1e9)
    few = ["--steps", "12", "--rollout.max-new-tokens", "4", "--eval.prompts", "0"]
    path = run(tmp_path, *few)
    assert capsys.readouterr().err.count("nats an answer from") == 1
    state = torch.load(path / "checkpoints/step-000012/state.pt", weights_only=True)
    assert len(state["progress"]["records"]) == 2

    assert main(["train", "--resume", str(path), "--steps", "14"]) == 0
    assert "nats an answer from" not in capsys.readouterr().err
    state = torch.load(path / "checkpoints/step-000014/state.pt", weights_only=True)
    assert len(state["progress"]["records"]) == 2
