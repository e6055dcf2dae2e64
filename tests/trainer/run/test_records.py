"""A run's directory and its records. Two runs that want one directory: test_lock.py."""

import json
import math

import pytest
from small_runs import finish, make_run

from dfpo.__main__ import main
from dfpo.config import ConfigError, build_config, load_yaml
from dfpo.run.records import (
    RUN_ID,
    MetricsLog,
    choose_run,
    create_run,
    is_complete,
    labels,
    read_metrics,
    write_json,
)


def test_a_taken_name_is_an_error(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert main(["train", "--runs-dir", str(tmp_path), "--name", "mine"]) == 2
    assert f"name: {tmp_path / 'mine'} exists already" in capsys.readouterr().err


def test_without_a_name_runs_are_numbered(tmp_path):
    config = build_config({"runs_dir": str(tmp_path), "seed": 3})
    for _ in range(3):
        create_run(choose_run(config), config)
    stem = "dfpo-seed3"
    assert sorted(p.name for p in tmp_path.iterdir()) == [stem, f"{stem}-2", f"{stem}-3"]
    # What is not there, but was pointed to, is taken too.
    (tmp_path / "dfpo-seed3-4").symlink_to("nowhere")
    assert choose_run(config).name == "dfpo-seed3-5"


def test_a_new_run_has_its_settings_an_identity_and_what_was_given(tmp_path):
    config = build_config({"name": "mine", "runs_dir": str(tmp_path), "steps": 7})
    create_run(tmp_path / "mine", config, lambda folder: (folder / "rows").write_text("given"))
    settings = load_yaml(tmp_path / "mine/config.yaml")
    assert settings["steps"] == 7 and settings.get("name") is None
    assert len((tmp_path / "mine" / RUN_ID).read_text().strip()) == 32
    assert (tmp_path / "mine/rows").read_text() == "given"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_directory_that_cannot_be_made_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="runs_dir: cannot make .*: Not a directory"):
        create_run(tmp_path / "file/run", build_config({}))


def test_metrics_are_a_line_a_step_and_say_nothing_that_json_cannot(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 0, "kl": math.nan})
    log.append({"step": 1, "kl": math.inf})
    assert log.append({"step": 2, "kl": 0.5}) == {"step": 2, "kl": 0.5}
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "k')
    expected = [{"step": 0, "kl": None}, {"step": 1, "kl": None}, {"step": 2, "kl": 0.5}]
    assert read_metrics(tmp_path) == log.read() == expected
    # A run that goes on after its second step.
    again = MetricsLog(tmp_path / "metrics.jsonl", steps=2)
    assert read_metrics(tmp_path) == again.read() == expected[:2]


def test_a_broken_line_is_named_before_the_run_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step\n{"step": 2}\n')
    with pytest.raises(ConfigError, match=r"resume: line 2 of .*metrics.jsonl is no JSON"):
        MetricsLog(path, steps=3)
    assert MetricsLog(path, steps=1).read() == [{"step": 0}], "what is cut off may be broken"


def test_a_process_beside_the_first_writes_nothing(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", writes=False)
    assert log.append({"step": 0, "kl": math.nan}) == {"step": 0, "kl": None}
    assert not list(tmp_path.iterdir())
    assert read_metrics(tmp_path) == []


def test_json_is_whole_and_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"x": [math.nan, 1], "y": (math.inf, {"z": -math.inf})})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"x": [None, 1], "y": [None, {"z": None}]}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("steps", "stale", "complete"),
    [(10, 0, True), (9, 0, False), (9, 2, True), (9, 1, False)],
)
def test_a_run_is_complete_at_its_last_step_or_without_gain(tmp_path, steps, stale, complete):
    run = make_run(tmp_path / "run", **{"eval.every": 1, "eval.patience": 2})
    config = build_config({"steps": 10, "eval.every": 1, "eval.patience": 2})
    assert not is_complete(run, config)
    finish(run, steps)
    summary = json.loads((run / "summary.json").read_text())
    summary["training"]["evaluations_without_gain"] = stale
    write_json(run / "summary.json", summary)
    assert is_complete(run, config) is complete


def test_labels_are_the_shortest_ends_that_differ(tmp_path):
    assert labels(["runs/a", "runs/b"]) == ["a", "b"]
    assert labels(["x/ppo/seed0", "x/dfpo/seed0", "x/dfpo/seed1"]) == [
        "ppo/seed0", "dfpo/seed0", "dfpo/seed1",
    ]  # fmt: skip
