"""A small run with a critic, under noise."""

import pytest

from dfpo.__main__ import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    words = ["--steps", "1", "--critic.warmup-steps", "1", "--eval.prompts", "2"]
    words += ["--rollout.prompts", "3", "--rollout.samples", "2", "--critic.num-quantiles", "4"]
    words += [
        "--plots",
        "false",
        "--eval.examples",
        "0",
        "--noise",
        "flip=0.25",
        "--eval.batch-size",
        "600",
    ]
    assert main(["train", *words, "--runs-dir", str(folder), "--name", "run"]) == 0
    return folder / "run"
