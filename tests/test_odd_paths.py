"""Every command, with spaces and letters of several alphabets in every path that it takes."""

import json
import shutil

import pytest
import yaml
from small_runs import make_run

from dfpo.__main__ import COMMANDS, main
from dfpo.rollout.policy import SHIPPED_POLICY

ODD = "ä ö 中 'x' $y %z #1"
SMALL = {
    "steps": 1, "plots": False, "answers_every": 1, "micro_tokens": 2000,
    "critic": {"warmup_steps": 0, "num_quantiles": 4},
    "rollout": {"prompts": 2, "samples": 2, "max_new_tokens": 8},
    "eval": {"prompts": 2, "examples": 0},
}  # fmt: skip
RECIPE = {
    "seeds": [3], "arms": {"ppo": {}, "dfpo": {}}, "noises": ["none"], "base": SMALL,
    "tuned": f"{ODD}.tuned.yaml",
    "tune": {"seeds": [10], "prompt_seed": 20, "prompts": 2,
             "arms": {arm: {"policy.learning_rate": [1e-4]} for arm in ("ppo", "dfpo")}},
}  # fmt: skip
REWARD = "def length(completions, **_):\n    return [float(len(x)) / 100 for x in completions]\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd") / ODD
    folder.mkdir()
    shutil.copytree(SHIPPED_POLICY, folder / f"{ODD} model")
    row = json.dumps({"prompt": "1 plus 2 "}) + "\n"
    (folder / f"{ODD}.jsonl").write_text(4 * row)
    (folder / f"{ODD}.py").write_text(REWARD)
    (folder / f"{ODD}.yaml").write_text(yaml.safe_dump(SMALL))
    recipe = RECIPE | {"output": str(folder / f"{ODD} out")}
    (folder / f"{ODD} recipe.yaml").write_text(yaml.safe_dump(recipe, allow_unicode=True))
    return folder


@pytest.fixture(scope="module")
def run(folder):
    data, reward = folder / f"{ODD}.jsonl", folder / f"{ODD}.py"
    words = ["--config", folder / f"{ODD}.yaml", "--model", folder / f"{ODD} model"]
    words += ["--data", data, "--eval-data", data, "--reward", f"{reward}:length"]
    words += ["--lora.rank", 2, "--runs-dir", folder / f"{ODD} runs", "--name", ODD]
    assert main(["train", *map(str, words)]) == 0
    return folder / f"{ODD} runs" / ODD


def test_train_says_where_it_is_and_goes_on(run, capsys):
    stored = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert stored["data"] == str(run.parents[1] / f"{ODD}.jsonl")
    assert main(["train", "--resume", str(run), "--steps", "2"]) == 0
    assert str(run) in capsys.readouterr().out


CASES = [
    (["eval", "RUN", "--show", "1"], None),
    (["critic", "RUN", "--answers", "1", "--plays", "2", "-o", "OUT.html"], "OUT.html"),
    (["merge", "RUN", "OUT merged"], "OUT merged/config.json"),
    (["report", "RUN", "RUN other", "-o", "OUT page.html"], "OUT page.html"),
    (["audit", "RUN", "--answers", "8"], "RUN/audit.json"),
    (["show", "RUN"], None),
    (["runs", "RUN/.."], None),
    (["memory", "--model", "MODEL", "--device", "cpu"], None),
    (["sft", "--output", "OUT sft", "--steps", "1", "--eval-prompts", "2"], "OUT sft/config.json"),
    (["tune", "RECIPE", "--jobs", "1"], "TUNED"),
    (["compare", "RECIPE", "--jobs", "1"], "COMPARED/report.html"),
]
LONG = ("tune", "compare")  # which start processes


@pytest.mark.parametrize(
    ("words", "made"),
    [
        pytest.param(*case, id=case[0][0], marks=[pytest.mark.long] * (case[0][0] in LONG))
        for case in CASES
    ],
)
def test_commands(run, folder, capsys, words, made):
    """Each ends well and writes where it is told to."""
    if not (run.parent / f"{ODD} other").exists():
        make_run(run.parent / f"{ODD} other")
    places = {
        "RUN": str(run), "OUT": str(folder / ODD), "MODEL": str(folder / f"{ODD} model"),
        "RECIPE": str(folder / f"{ODD} recipe.yaml"), "TUNED": str(folder / f"{ODD}.tuned.yaml"),
        "COMPARED": str(folder / f"{ODD} out"),
    }  # fmt: skip

    def placed(text):
        for name, place in places.items():
            text = text.replace(name, place)
        return text

    assert main([placed(word) for word in words]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out
    if made is not None:
        assert (folder / placed(made)).is_file()


def test_no_command_is_missing():
    of_no_path = {"info", "completion"}
    assert {words[0] for words, _ in CASES} | {"train"} == set(COMMANDS) - of_no_path
