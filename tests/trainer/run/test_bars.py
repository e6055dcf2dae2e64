"""Progress where there is no terminal, and a reference that changes under a run."""

import io
import shutil
import sys

from tqdm import tqdm

from dfpo.__main__ import main
from dfpo.run import bars

SMALL = [
    "train", "--eval.prompts", "0", "--plots", "false", "--rollout.prompts", "2",
    "--rollout.samples", "2", "--critic.warmup-steps", "1",
    "--rollout.max-new-tokens", "12",
]  # fmt: skip


def test_a_log_file_gets_lines(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setattr(bars, "SECONDS", 0.0)
    bar = bars.bar(range(200), desc="train", unit="step", total=200)
    for _ in bar:
        bar.set_postfix({"reward": "0.5"})
    lines = file.getvalue().splitlines()
    assert len(lines) == 20, "one every five per cent"
    assert lines[0] == "train: 10 of 200 steps, reward=0.5"
    assert lines[-1] == "train: 200 of 200 steps, reward=0.5"
    assert "\r" not in file.getvalue() and "\x1b" not in file.getvalue()


def test_a_bar_that_goes_has_no_last_word(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    for _ in bars.bar(range(2), desc="evaluate", unit="batch", leave=False):
        pass
    assert file.getvalue() == ""
    monkeypatch.setattr(bars, "SECONDS", 0.0)
    for _ in bars.bar(range(2), desc="evaluate", unit="batch", leave=False):
        pass
    assert file.getvalue().splitlines()[-1] == "evaluate: 2 of 2 batches"


def test_a_terminal_gets_a_bar(monkeypatch):
    file = io.StringIO()
    file.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", file)
    assert type(bars.bar(range(3))) is tqdm


def test_a_reference_that_changed_is_refused(tmp_path, monkeypatch, capsys):
    """The model of a run is another run's policy, which is trained on (KL was 14 for .95)."""
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, "--steps", "1", "--name", "first"]) == 0
    assert main([*SMALL, "--steps", "2", "--name", "second", "--model", "runs/first/policy"]) == 0
    shutil.copytree("runs/first/policy", "kept")
    assert main(["train", "--resume", "runs/first", "--steps", "3"]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "runs/second", "--steps", "4"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "is not the model that this run began from" in said[-1]
    shutil.rmtree("runs/first/policy")
    shutil.copytree("kept", "runs/first/policy")
    assert main(["train", "--resume", "runs/second", "--steps", "4"]) == 0
