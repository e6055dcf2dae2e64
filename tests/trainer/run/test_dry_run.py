"""``dfpo train --dry-run``."""

import pytest

from dfpo.__main__ import main
from dfpo.config import build_config
from dfpo.run import dry_run

SMALL = ["--rollout.prompts", "2", "--rollout.samples", "3", "--critic.num-quantiles", "4"]


def test_it_says_what_a_run_would_be_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dry_run, "MOST_TRIES", 1)
    words = ["--steps", "20", "--critic.warmup-steps", "5", "--eval.prompts", "10"]
    assert main(["train", "--dry-run", *SMALL, *words]) == 0
    said = capsys.readouterr().out
    assert said.startswith("dry run: nothing is written. runs/dfpo-seed0: dfpo, LlamaForCausalLM")
    assert "step of the critic alone: " in said and "taken 5 times" in said
    assert "taken 15 times" in said
    # Three domains in and out of domain, ten prompts each, sampled and greedy.
    assert "taken 2 times: 120 answers" in said
    assert list(tmp_path.iterdir()) == []


def test_it_refuses_what_a_run_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--dry-run", "--model", "nowhere"]) == 2
    assert "model: nowhere holds no config.json" in capsys.readouterr().err
    assert main(["train", "--dry-run", "--resume", "runs/mine"]) == 2
    assert "dry-run: is for a new run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("steps", "every", "count"), [(60, 0, 2), (60, 20, 4), (59, 20, 4), (61, 20, 5), (0, 0, 2)]
)
def test_evaluations_are_counted_as_the_run_makes_them(steps, every, count):
    """Before, after every so many steps, and after the last."""
    config = build_config({"steps": steps, "eval.every": every})
    assert dry_run.evaluations(config) == count


def test_a_run_of_warm_up_alone_has_one_kind_of_step():
    config = build_config({"steps": 3, "critic.warmup_steps": 15})
    assert dry_run.kinds_of_step(config) == {dry_run.CRITIC_ALONE: (0, 3)}
