"""A disk that is full, read-only or gone at a write of a run: one line, and what was whole stays.

`python tests/soak.py faults` fails every write; here are some, of every kind.
"""

import pytest
from disk_faults import command_with_fault

from dfpo.run import checkpoint

SMALL = [
    "--steps", "2", "--critic.warmup-steps", "1", "--eval.prompts", "1", "--eval.examples", "0",
    "--rollout.prompts", "2", "--rollout.samples", "2", "--critic.num-quantiles", "5",
    "--plots", "false", "--rollout.max-new-tokens", "8",
]  # fmt: skip


def words(runs):
    return ["train", *SMALL, "--runs-dir", str(runs), "--name", "run"]


def check(runs, outcome):
    """Status 1 with one line on how to go on, or 2 where nothing was begun, and the last checkpoint
    that was written is whole; or all is as if nothing had been (what is cleared away may stay)."""
    assert "Traceback" not in outcome.said, outcome.said
    run = runs / "run"
    if outcome.status == 0:
        assert checkpoint.newest(run).name == "step-000002" and (run / "summary.json").is_file()
        return
    lines = [line for line in outcome.said.splitlines() if line.startswith("dfpo train:")]
    assert len(lines) == 1, outcome.said
    if outcome.status == 2:
        assert not run.exists()
        return
    assert outcome.status == 1 and "--resume" in lines[0], outcome.said
    if any(run.glob("checkpoints/step-*")):
        assert checkpoint.newest(run) is not None


@pytest.mark.parametrize(
    "fault",
    [
        {"at": 1, "kind": "full"},
        {"at": 22, "kind": "full"},
        {"at": 7, "kind": "refused"},
        {"at": 25, "kind": "vanished"},
        {"largest": 3000},  # less than a tokenizer, which a library in Rust writes
        {"largest": 300_000},  # less than the weights
    ],
)
def test_a_write_that_fails(tmp_path, fault):
    outcome = command_with_fault(words(tmp_path / "runs"), tmp_path / "runs", **fault)
    assert outcome.status != 0, "the fault was met"
    check(tmp_path / "runs", outcome)


def test_every_write_is_seen(tmp_path):
    """Of a run that nothing disturbs: no fewer than its files."""
    outcome = command_with_fault(words(tmp_path / "runs"), tmp_path / "runs")
    check(tmp_path / "runs", outcome)
    assert outcome.status == 0 and outcome.writes > 30
