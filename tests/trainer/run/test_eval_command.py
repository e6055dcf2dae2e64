"""``dfpo eval``."""

import json
import shutil

import pytest
from tiny_models import FAMILIES, make_model

from dfpo.__main__ import main

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
    assert main(["eval", str(files / "llama"), *words, *SMALL[8:10], "--eval.prompts", "2"]) == 0
    said = capsys.readouterr().out
    assert f"{summary['before']['train']:.3f} ± {summary['before']['train_se']:.3f}" in said
