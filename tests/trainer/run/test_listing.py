"""The list of runs."""

import json
import os

from small_runs import finish, make_run

from dfpo.__main__ import main
from dfpo.run.listing import duration
from dfpo.run.lock import hold, is_held


def test_states_steps_and_rewards(tmp_path, capsys):
    for age, name in enumerate(("done", "stopped", "grid/cells/ppo", "working"), start=1):
        run = make_run(tmp_path / name, algorithm="ppo")
        for path in run.glob("*.*"):
            os.utime(path, (0, 10**9 + age))
    finish(tmp_path / "done")
    os.utime(tmp_path / "done" / "summary.json", (0, 10**9))
    (tmp_path / "grid" / "odd").mkdir()
    (tmp_path / "grid" / "odd" / "config.yaml").write_text("no_such_setting: 1\n")
    # A checkpoint is no run of its own.
    (tmp_path / "stopped" / "checkpoints").mkdir()
    (tmp_path / "stopped" / "checkpoints" / "config.yaml").write_text("")

    with hold(tmp_path / "working"):
        assert main(["runs", str(tmp_path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(one["run"], one["state"]) for one in listed] == [
        ("done", "finished"), ("stopped", "stopped"), ("grid/cells/ppo", "stopped"),
        ("working", "at work"), ("grid/odd", "unreadable"),
    ]  # fmt: skip
    assert listed[0]["step"] == listed[0]["steps"] == 10 and listed[0]["seconds"] == 90
    assert listed[0]["clean"] == 0.9 and listed[0]["told"] is None

    assert main(["runs", str(tmp_path)]) == 0
    table = capsys.readouterr().out
    assert "10/10" in table and "0.900" in table and "at work" not in table


def test_a_folder_that_is_none(tmp_path, capsys):
    assert main(["runs", str(tmp_path / "no")]) == 2
    assert "must be one that holds runs" in capsys.readouterr().err


def test_looking_at_a_lock_writes_nothing_and_lets_go_of_it(tmp_path):
    assert not is_held(tmp_path) and not list(tmp_path.iterdir())
    with hold(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    with hold(tmp_path):
        pass


def test_a_line_that_is_being_written_is_not_there_yet(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "reward/cl')
    assert main(["runs", str(tmp_path)]) == 0
    assert "10/10" in capsys.readouterr().out


def test_durations():
    assert [duration(s) for s in (3, 89, 90, 599.7, 7200, 9000, 86400, 10**6)] == [
        "3 s", "89 s", "1.5 min", "10 min", "2 h", "2.5 h", "24 h", "12 d",
    ]  # fmt: skip
