"""One writer a run, and names that are one folder."""

import errno
import fcntl
import json
import multiprocessing
import os
import time

import pytest

from dfpo.config import ConfigError, build_config
from dfpo.run import lock
from dfpo.run.lock import HELD, AtWork, hold
from dfpo.run.records import check_name, choose_run, create_run
from dfpo.run.train import alone

FORK = multiprocessing.get_context("fork")


@pytest.fixture(params=["flock", "a file system without it"])
def folder(tmp_path, monkeypatch, request):
    if request.param != "flock":

        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
    return tmp_path


def hold_and_wait(folder, ready, done):
    with hold(folder):
        ready.set()
        done.wait(60)


def holder(folder):
    ready, done = FORK.Event(), FORK.Event()
    process = FORK.Process(target=hold_and_wait, args=(folder, ready, done))
    process.start()
    assert ready.wait(30)
    return process, done


def test_a_second_writer_is_told_who_is_at_work(folder):
    process, done = holder(folder)
    with pytest.raises(AtWork, match=f"process {process.pid} on "), hold(folder):
        pass
    with pytest.raises(ConfigError, match="is at work, in process"), alone(folder):
        pass
    done.set()
    process.join()
    with hold(folder):
        pass


def test_a_killed_holder_holds_nothing(folder):
    process, _ = holder(folder)
    process.kill()
    process.join()
    with hold(folder):
        pass


def test_of_another_machine_it_counts_while_it_is_touched(tmp_path):
    held = tmp_path / HELD
    owner = {"who": "process 1 on elsewhere", "host": "elsewhere", "boot": "b", "pid": 1}
    held.write_text(json.dumps(owner | {"started": "0"}))
    with pytest.raises(AtWork, match="elsewhere"), lock._held(held):
        pass
    old = time.time() - 2 * lock.STALE
    os.utime(held, (old, old))
    with lock._held(held):
        assert json.loads(held.read_text())["pid"] == os.getpid()
    assert not held.exists()


def test_a_number_that_another_process_has_now_is_not_the_holder(tmp_path):
    """This process has the number of one that ended long ago."""
    held = tmp_path / HELD
    with lock._held(held):
        owner = json.loads(held.read_text())
    held.write_text(json.dumps(owner | {"started": "1"}))
    with lock._held(held):
        pass


def test_of_two_starts_one_wins(tmp_path):
    config = build_config({"runs_dir": str(tmp_path), "name": "one"})
    first, second = choose_run(config), choose_run(config)
    create_run(first, config)
    with pytest.raises(ConfigError, match="just taken"):
        create_run(second, config)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


@pytest.mark.parametrize(
    "name",
    [
        "../x", "a/b", "a\\b", "a\nb", "a\0b", "a\x1b[31m", "x" * 300, "\u4e00" * 40, "..",
        ".hidden", "", " ", " x", "con", "NUL.txt", "COM1", "x.", "a\u2028b", "a\u202eb",
    ],
)  # fmt: skip
def test_names_that_are_none(tmp_path, name):
    with pytest.raises(ConfigError, match="^name: ") as error:
        choose_run(build_config({"runs_dir": str(tmp_path / "runs"), "name": name}))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mine", "run 2", "\u8bd5\u9a8c", "\u00fcbung-1.5", "a" * 100])
def test_names_that_are(name):
    check_name(name)
