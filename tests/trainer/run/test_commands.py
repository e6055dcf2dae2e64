"""From the words of a command to the settings of a run, with stand-ins for what then works."""

import pytest
from small_runs import finish, make_run

from dfpo.__main__ import main


@pytest.fixture
def trained(monkeypatch):
    """(configuration, run to resume) of each call of ``train``."""
    calls = []
    monkeypatch.setattr("dfpo.run.train.train", lambda config, run: calls.append((config, run)))
    return calls


@pytest.fixture
def evaluated(monkeypatch):
    calls = []

    def evaluate(target, config, show, as_json):
        calls.append(config)
        return "a table"

    monkeypatch.setattr("dfpo.run.eval_command.evaluate_target", evaluate)
    return calls


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path, trained):
    path = tmp_path / "mine.yaml"
    path.write_text("algorithm: dfpo-paper\npolicy: {clip: 0.3}\nsteps: 5\n")
    assert main(["train", "--config", str(path), "--steps", "7"]) == 0
    ((config, resumed),) = trained
    assert (config.algorithm, config.policy.clip, config.steps) == ("dfpo-paper", 0.3, 7)
    assert resumed is None


def test_a_file_serves_another_algorithm_too(tmp_path, trained, capsys):
    """The same file makes the baseline: what that does not read is left out, and said."""
    path = tmp_path / "mine.yaml"
    path.write_text("critic.num_quantiles: 8\nsteps: 3\n")
    assert main(["train", "--config", str(path), "--algorithm", "ppo"]) == 0
    assert "critic.num_quantiles left out: ppo does not read it" in capsys.readouterr().out
    assert (trained[0][0].algorithm, trained[0][0].steps) == ("ppo", 3)


def test_a_resumed_run_has_its_own_settings_and_a_finished_one_is_left_alone(
    tmp_path, trained, capsys
):
    run = make_run(tmp_path / "run")
    assert main(["train", "--resume", str(run), "--steps", "12"]) == 0
    ((config, resumed),) = trained
    assert (config.steps, config.noise, resumed) == (12, "flip=0.3", run)
    finish(run)
    assert main(["train", "--resume", str(run)]) == 0
    assert "finished after 10 steps; --steps N would go on to N" in capsys.readouterr().out
    assert len(trained) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--resume", "a", "--config", "b"], "config: is b, but a resumed run has its own"),
        (["--resume", "a", "--seed", "1"], "seed: cannot change in a resumed run, only steps, "),
        (["--resume", "a", "--dry-run"], "dry-run: is for a new run, must not be given with"),
    ],
)
def test_what_a_resumed_run_does_not_take_is_one_line(trained, capsys, words, said):
    assert main(["train", *words]) == 2
    assert said in capsys.readouterr().err and not trained


def test_a_run_is_evaluated_on_its_own_prompts_or_on_others(tmp_path, evaluated):
    run = make_run(tmp_path / "run", task="hard", **{"reward.functions": "a.py:f"})
    assert main(["eval", str(run)]) == 0
    assert main(["eval", str(run), "--data", "rows.jsonl"]) == 0
    assert main(["eval", str(run), "--task", "suite"]) == 0
    own, data, task = evaluated
    assert own.task == "hard" and own.reward.functions == data.reward.functions == ("a.py:f",)
    assert (data.task, data.data) == (None, "rows.jsonl")
    assert (task.task, task.reward.functions) == ("suite", ())
    assert {config.model for config in evaluated} == {str(run)}


def test_a_live_report_writes_nothing(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert main(["report", str(run), "--live", "-o", "x.html"]) == 2
    assert "output: is x.html, but --live writes nothing" in capsys.readouterr().err


def test_memory_needs_a_model(capsys):
    assert main(["memory"]) == 2
    assert "model: is not given, must be a model's directory or its" in capsys.readouterr().err
