"""Names of runs."""

import pytest

from dfpo.__main__ import main

SMALL = ["--steps", "3", "--critic.warmup-steps", "1", "--eval.prompts", "4"]


SMALL += ["--rollout.prompts", "3", "--rollout.samples", "2"]


SMALL += ["--plots", "false"]


def run(folder, *flags):
    name = f"run{len(list(folder.iterdir()))}"
    status = main(["train", *SMALL, "--runs-dir", str(folder), "--name", name, *flags])
    assert status == 0
    return folder / name


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs"), "--noise", "flip=0.5", "--plots", "true")


def test_a_taken_name_is_an_error(finished, capsys):
    assert main(["train", "--runs-dir", str(finished.parent), "--name", finished.name]) == 2
    assert str(finished) in capsys.readouterr().err


def test_without_a_name_runs_are_numbered(tmp_path):
    for _ in range(2):
        assert main(["train", *SMALL, "--steps", "0", "--runs-dir", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dfpo-seed0", "dfpo-seed0-2"]
