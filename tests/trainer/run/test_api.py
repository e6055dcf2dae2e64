"""The Python API: what it takes, what a run gives back, and that it is the command line's run."""

import doctest
import json
import subprocess
import sys

import datasets
import pandas
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import dfpo
from dfpo.__main__ import main
from dfpo.rollout.policy import SHIPPED_POLICY

SMALL = {
    "steps": 2, "critic": {"warmup_steps": 1}, "rollout.prompts": 2, "rollout.samples": 2,
    "rollout.max_new_tokens": 12, "eval": {"prompts": 2, "examples": 0}, "plots": False,
}  # fmt: skip
ROWS = [{"prompt": "math a ?", "gold": "so"}, {"prompt": "science b ?", "gold": "1"}]


def score(prompts, completions, gold, **columns):
    return [float(word in text) for text, word in zip(completions, gold, strict=True)]


def loaded():
    return (
        AutoModelForCausalLM.from_pretrained(SHIPPED_POLICY),
        AutoTokenizer.from_pretrained(SHIPPED_POLICY),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return dfpo.train(
        model=loaded(), data=ROWS, eval_data=datasets.Dataset.from_list(ROWS), reward=score,
        runs_dir=folder, name="mine", noise="flip=0.2", **SMALL,
    )  # fmt: skip


def test_metrics_are_a_frame_of_a_row_a_step(run):
    assert isinstance(run.metrics, pandas.DataFrame)
    assert run.metrics["step"].tolist() == [0, 1]
    assert run.summary["training"]["steps"] == 2
    assert "Run" in repr(run) and "2 steps" in repr(run)


def test_the_policy_is_the_loaded_model_trained(run):
    first = AutoModelForCausalLM.from_pretrained(run.directory / "first_policy")
    changed = [
        not torch.equal(a, b)
        for a, b in zip(first.parameters(), run.policy.parameters(), strict=True)
    ]
    assert any(changed)
    assert run.tokenizer("so 1")["input_ids"]


def test_values_are_what_the_critic_says_of_each_token(run):
    values = run.values(ROWS[0]["prompt"], "so 1 0")
    assert values.tokens == ["so", "1", "0"]
    assert values.quantiles.shape == (3, run.config.critic.num_quantiles)
    assert values.final.shape == (run.config.critic.num_quantiles,)
    # A state knows what stands before it and not what follows.
    other = run.values(ROWS[0]["prompt"], "so 1 7")
    assert torch.equal(values.quantiles, other.quantiles)
    assert not torch.equal(values.final, other.final)
    assert len(values.plot().axes) == 1 and len(run.plot().axes) == 4


def test_evaluation(run):
    result = run.evaluate(reward=score)
    assert result.metric == "reward" and set(result.scores) == {"data"}
    assert "out of domain" not in str(result) and "data" in str(result)
    # The same prompts and draws as the evaluation that closed the run.
    assert result.scores["data"] == run.summary["domains"]["data"]["after"]
    with pytest.raises(dfpo.ConfigError, match="score was a function given in Python"):
        run.evaluate()


def test_a_run_of_objects_is_that_of_files(run, tmp_path):
    """Model, data and reward as paths: the same numbers to the bit."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "score.py").write_text(
        "def score(completions, gold, **columns):\n"
        "    return [float(w in t) for t, w in zip(completions, gold)]\n"
    )
    paths = {"data": tmp_path / "rows.jsonl", "eval_data": tmp_path / "rows.jsonl"}
    files = dfpo.train(
        model=SHIPPED_POLICY, reward=f"{tmp_path / 'score.py'}:score", runs_dir=tmp_path,
        noise="flip=0.2", **paths, **SMALL,
    )  # fmt: skip
    same = [c for c in run.metrics.columns if not c.startswith("perf/")]
    pandas.testing.assert_frame_equal(files.metrics[same], run.metrics[same], check_exact=True)


def test_it_goes_on_as_if_it_had_not_stopped(run, tmp_path):
    short = dfpo.train(
        model=loaded(), data=ROWS, reward=score, runs_dir=tmp_path, name="short",
        **SMALL | {"steps": 1},
    )  # fmt: skip
    # From the command line everything is there but the function.
    assert main(["train", "--resume", str(short.directory), "--steps", "2"]) == 2
    long = dfpo.load(short.directory).resume(reward=score, steps=2)
    whole = dfpo.train(
        model=loaded(), data=ROWS, reward=score, runs_dir=tmp_path, name="whole", **SMALL
    )  # fmt: skip
    same = [c for c in whole.metrics.columns if not c.startswith("perf/")]
    pandas.testing.assert_frame_equal(long.metrics[same], whole.metrics[same], check_exact=True)


def test_several_functions_are_summed_by_name(tmp_path):
    def long_answers(completions, **columns):
        return [len(text.split()) / 12 for text in completions]

    run = dfpo.train(
        data=ROWS, reward=[score, long_answers], runs_dir=tmp_path,
        **SMALL | {"reward.weights": [1, 0.5]},
    )  # fmt: skip
    parts = run.metrics["reward/of/score"] + 0.5 * run.metrics["reward/of/long_answers"]
    assert run.metrics["reward/clean"].tolist() == pytest.approx(parts.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": 3}, "model: is int, must be a path, or"),
        ({"model": (1, 2)}, "model: is tuple"),
        ({"data": 3}, "data: is int, must be a path, a list of rows"),
        ({"data": []}, "data holds no rows"),
        ({"data": [{"text": "a"}]}, "data, row 1 has no key prompt"),
        ({"data": [{"prompt": "a", "x": object()}]}, "data: rows must hold text"),
        ({"reward": [score, "a.py:f"]}, "reward: must be functions, or paths"),
        ({"algorithm": "dfpoo"}, "did you mean dfpo"),
        ({"critic": {"widht": 3}}, "critic.widht: is no setting; did you mean critic.width"),
    ],
)
def test_wrong_input_is_one_line_before_any_work(tmp_path, given, words):
    with pytest.raises(dfpo.ConfigError, match=words.replace(".", r"\.")) as error:
        dfpo.train(**{"data": ROWS, "reward": score, "runs_dir": tmp_path} | given)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_no_run_is_said(tmp_path):
    with pytest.raises(dfpo.ConfigError, match="must be the directory of a run"):
        dfpo.load(tmp_path)


def test_a_run_without_a_critic_says_so(tmp_path):
    own = {key: value for key, value in SMALL.items() if key != "critic"}
    run = dfpo.train(algorithm="grpo", task="suite", runs_dir=tmp_path, **own)
    with pytest.raises(dfpo.ConfigError, match="grpo has none"):
        run.values("a", "b")


def test_a_comparison_is_a_mapping_away(tmp_path):
    recipe = {
        "output": str(tmp_path / "grid"), "seeds": 2, "arms": ["ppo", "dfpo"],
        "base": {"steps": 1, "rollout": {"prompts": 1, "samples": 2, "max_new_tokens": 4},
                 "eval.prompts": 1, "critic.num_quantiles": 4, "policy.minibatches": 1},
    }  # fmt: skip
    done = dfpo.compare(recipe, jobs=2)
    assert len(done.results) == 4 and done.baseline == "ppo"
    assert "Differences to ppo" in done.table
    assert {d["arm"] for d in done.differences} == {"dfpo"}
    assert all(d["seeds"] == 2 for d in done.differences)
    assert "4 runs of ppo, dfpo" in repr(done)


def test_the_documented_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestFinder().find(dfpo.train, globs={"dfpo": dfpo})
    runner = doctest.DocTestRunner()
    for example in examples:
        runner.run(example, out=lambda text: None)
    # It prints progress, which is no failure; an exception would leave no run.
    assert (tmp_path / "runs/short/summary.json").is_file()


BLOCKED = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {"transformers", "accelerate", "yaml"}:
            raise ModuleNotFoundError(name)
import importlib.util
known = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name in ("transformers", "accelerate", "yaml") else known(name, package))
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("import dfpo, dfpo_kernels; dfpo_kernels.backends()", 0, ""),
        ("from dfpo.integrations import nemo_rl, openrlhf, slime, verl", 0, ""),
        ("import dfpo; dfpo.train", 1, "pip install 'dfpo[train]'"),
        ("import runpy; runpy.run_module('dfpo', run_name='__main__')", 1,
         "dfpo: the trainer lacks transformers, accelerate, yaml: pip install 'dfpo[train]'"),
    ],
)  # fmt: skip
def test_without_the_trainer_the_kernels_work_and_one_line_says_what_to_do(code, status, words):
    done = subprocess.run([sys.executable, "-c", BLOCKED + code], capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert words in done.stderr


def test_a_model_in_bfloat16_is_trained_in_float32(tmp_path):
    model, tokenizer = loaded()
    run = dfpo.train(
        model=(model.bfloat16(), tokenizer), data=ROWS, reward=score, runs_dir=tmp_path, **SMALL
    )  # fmt: skip
    assert all(p.dtype == torch.float32 for p in run.policy.parameters())
