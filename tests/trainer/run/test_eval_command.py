"""``dfpo eval``."""

import json
import shutil

import pytest
from tiny_models import make_model

from dfpo.__main__ import main

REWARD = """
def vowels(prompts, completions, completion_ids, target, **columns):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(x in "aeiou" for x in text) / len(ids) for text, ids in zip(texts, completion_ids)]
"""
SMALL = [
    "--steps", "2", "--critic.warmup-steps", "1", "--critic.num-quantiles", "5",
    "--rollout.prompts", "3", "--rollout.samples", "2", "--eval.prompts", "2",
    "--eval.examples", "0", "--plots", "false",
]  # fmt: skip
SHORT = ["--rollout.max-new-tokens", "8"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Prompts, a reward and a model."""
    folder = tmp_path_factory.mktemp("files")
    rows = [{"prompt": f"Count {'o' * i}: ", "target": i} for i in range(1, 7)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(REWARD)
    make_model(folder / "llama")
    return folder


def own(files):
    return [
        "--model", str(files / "llama"), "--data", str(files / "texts.jsonl"),
        "--reward", f"{files / 'reward.py'}:vowels",
    ]  # fmt: skip


def train(folder, *words, name="run"):
    assert main(["train", *SMALL, *SHORT, "--runs-dir", str(folder), "--name", name, *words]) == 0
    return folder / name


def test_eval_of_runs_and_models(files, tmp_path, capsys):
    run = train(tmp_path, *own(files))
    summary = json.loads((run / "summary.json").read_text())
    capsys.readouterr()
    assert main(["eval", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mean"] == summary["after"] and found["metric"] == "reward"
    assert found["domains"]["data"] == summary["domains"]["data"]["after"]
    # The run as a kill would have left it: its last checkpoint speaks.
    (run / "summary.json").unlink()
    shutil.rmtree(run / "policy")
    assert main(["eval", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mean"] == summary["after"]

    words = own(files)[2:]
    assert main(["eval", str(files / "llama"), *words, *SHORT, "--eval.prompts", "2"]) == 0
    said = capsys.readouterr().out
    assert f"{summary['before']['train']:.3f} ± {summary['before']['train_se']:.3f}" in said
