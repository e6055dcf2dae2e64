"""Runs that are killed, stopped, or meet a full disk, and go on."""

import json
import os
import pickle
import resource
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from tqdm import tqdm

from dfpo.__main__ import main
from dfpo.run import checkpoint
from dfpo.run.records import MetricsLog

STEPS = 5
SMALL = ["--steps", str(STEPS), "--critic.warmup-steps", "2", "--eval.prompts", "0"]
SMALL += ["--plots", "false", "--rollout.prompts", "3", "--rollout.samples", "2"]
SMALL += ["--rollout.max-new-tokens", "16", "--critic.num-quantiles", "5"]
# Draws from every global generator, so that a random state which is not restored shows.
REWARD = """
import random
import numpy
import torch

def reward(prompts, completions, completion_ids, domain, answer):
    noise = [random.random() + numpy.random.rand() + torch.rand(()).item() for _ in prompts]
    return [len(c) / 100 + n for c, n in zip(completions, noise)]
"""


def flags(folder, name, *more):
    return ["train", *SMALL, "--runs-dir", str(folder), "--name", name, *more]


def metrics(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if not k.startswith("perf/")} for x in lines]


def weights(run):
    files = ("policy/model.safetensors", "critic.safetensors")
    return [(run / file).read_bytes() for file in files]


def in_child(words, watch=None, limit=None):
    """Runs ``dfpo`` in a fork and returns its wait status; ``watch(pid)`` may send signals."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            # Its own record of what it says.
            log = Path(os.environ["CHILD_LOG"]).open("w", buffering=1)  # noqa: SIM115
            sys.stdout = sys.stderr = log
            # tqdm's own lock is shared with forks: killed with it, the child would stop us too.
            tqdm.set_lock(threading.RLock())
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            status = main(words)
        finally:
            os._exit(status)
    if watch:
        watch(pid)
    return os.waitpid(pid, 0)[1]


@pytest.fixture(autouse=True)
def child_log(tmp_path, monkeypatch):
    monkeypatch.setenv("CHILD_LOG", str(tmp_path / "child.log"))
    return tmp_path / "child.log"


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    path = tmp_path_factory.mktemp("reward") / "noisy.py"
    path.write_text(REWARD)
    return ["--reward", f"{path}:reward"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, reward):
    """The run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(flags(folder, "whole", *reward)) == 0
    return folder / "whole"


def wait_for(path, seconds=120):
    for _ in range(seconds * 200):
        if path.exists():
            return
        time.sleep(0.005)
    raise AssertionError(f"{path} did not appear")


def killed_at(step, run, words):
    def kill(pid):
        wait_for(run / "checkpoints" / f"step-{step:06d}")
        os.kill(pid, signal.SIGKILL)

    assert in_child(words, kill) == signal.SIGKILL
    assert not (run / "summary.json").exists()


@pytest.mark.parametrize("step", [0, 3])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, whole, reward, step):
    run = tmp_path / "run"
    killed_at(step, run, flags(tmp_path, "run", *reward))
    assert main(["train", "--resume", str(run)]) == 0
    assert metrics(run) == metrics(whole)
    assert weights(run) == weights(whole)


@pytest.mark.long
def test_evaluation_and_plots_go_on_too(tmp_path, whole, reward):
    """Evaluations leave training alone, and those of a resumed run are the same."""
    more = [*reward, "--eval.prompts", "2", "--eval.examples", "2", "--plots", "true"]
    assert main(flags(tmp_path, "all", *more)) == 0
    run = tmp_path / "run"
    killed_at(1, run, flags(tmp_path, "run", *more))
    assert main(["train", "--resume", str(run)]) == 0
    assert metrics(run) == metrics(tmp_path / "all") == metrics(whole)
    for plot in ("value_fan.png", "calibration.png", "reward.png", "training.png"):
        assert (run / "plots" / plot).read_bytes() == (tmp_path / "all/plots" / plot).read_bytes()
    ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (run, tmp_path / "all"))
    assert (ours["before"], ours["after"]) == (theirs["before"], theirs["after"])


def test_the_last_two_checkpoints_are_kept(whole):
    names = sorted(p.name for p in (whole / "checkpoints").iterdir())
    assert names == [f"step-{STEPS - 1:06d}", f"step-{STEPS:06d}"]


def test_metrics_are_cut_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"st')
    assert MetricsLog(path, 2).read() == [{"step": 0}, {"step": 1}]
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n'
    assert MetricsLog(path, 0).read() == []
    assert path.read_text() == ""


class Killed(BaseException):
    """Stands for a kill at one place: nothing that runs after it may be needed."""


@pytest.mark.parametrize("place", ["torch.save", "os.replace"])
def test_a_kill_while_writing_leaves_the_one_before(tmp_path, whole, reward, monkeypatch, place):
    run = tmp_path / "run"
    owner = {"torch.save": checkpoint.torch, "os.replace": checkpoint.os}[place]
    name = place.split(".")[1]
    original, calls = getattr(owner, name), []

    def die_at_the_third(*args):
        if ".partial" in str(args[-1]) or "checkpoints" in str(args[0]):
            calls.append(args)
            if len(calls) == 3:
                raise Killed
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, die_at_the_third)
        with pytest.raises(Killed):
            main(flags(tmp_path, "run", *reward))
    assert checkpoint.newest(run).name == "step-000001"
    assert main(["train", "--resume", str(run)]) == 0
    assert metrics(run) == metrics(whole)
    assert weights(run) == weights(whole)
    assert not (run / "checkpoints" / checkpoint.PARTIAL).exists()


def test_a_full_disk_loses_one_step(tmp_path, whole, reward, child_log):
    """No file may grow beyond a limit that the optimisers' states exceed once they have any."""
    run = tmp_path / "run"
    policy = (whole / "policy" / "model.safetensors").stat().st_size
    status = in_child(flags(tmp_path, "run", *reward), limit=2 * policy)
    assert os.waitstatus_to_exitcode(status) == 1
    said = child_log.read_text()
    assert "cannot write" in said and f"dfpo train --resume {run}" in said
    assert "Traceback" not in said
    assert checkpoint.newest(run).name == "step-000000"
    assert main(["train", "--resume", str(run)]) == 0
    assert metrics(run) == metrics(whole)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_step_and_says_how_to_go_on(tmp_path, whole, reward, child_log, signum):
    run = tmp_path / "run"

    def send(pid):
        wait_for(run / "checkpoints" / "step-000001")
        time.sleep(0.05)
        os.kill(pid, signum)

    # Seldom checkpoints: the signal itself must bring one.
    status = in_child(flags(tmp_path, "run", *reward, "--steps", "40"), send)
    assert os.waitstatus_to_exitcode(status) == 128 + signum
    said = child_log.read_text()
    assert f"continue with: dfpo train --resume {run}" in said
    assert "Traceback" not in said
    done = int(checkpoint.newest(run).name.removeprefix("step-"))
    assert len(metrics(run)) == done
    assert metrics(run)[:STEPS] == metrics(whole)[:done]


def test_seldom_checkpoints(tmp_path, whole, reward):
    """A kill between checkpoints repeats the steps since the last; the end is always kept."""
    run = tmp_path / "run"

    def kill(pid):
        wait_for(run / "metrics.jsonl")
        while (run / "metrics.jsonl").read_text().count("\n") < 3:
            time.sleep(0.005)
        os.kill(pid, signal.SIGKILL)

    in_child(flags(tmp_path, "run", *reward, "--checkpoint-every", "2"), kill)
    assert len(metrics(run)) >= 3
    assert checkpoint.newest(run).name in ("step-000002", "step-000004")
    assert main(["train", "--resume", str(run)]) == 0
    assert metrics(run) == metrics(whole)
    assert checkpoint.newest(run).name == f"step-{STEPS:06d}"


@pytest.mark.parametrize("words", [["train", "--steps", "9", "--resume"], ["critic"]])
def test_weights_of_another_critic_are_one_line(tmp_path, whole, capsys, words):
    """A configuration without the line is one of before the option was there."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("linear_mean: true", "linear_mean: false"))
    assert main([*words, str(run)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "critic.safetensors" in said


def files_of(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


class Payload:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_every_harm_to_every_file_is_noticed(tmp_path, whole):
    """One bit anywhere, a file cut, empty, gone, of another run, of code, or too many."""
    other = tmp_path / "other"
    assert main(flags(tmp_path, "other", "--seed", "7")) == 0
    last = checkpoint.newest(whole)
    theirs = other / "checkpoints" / last.name
    trap = tmp_path / "trap"

    def harms(path, name):
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            yield content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]
        yield content[:-1]
        yield b""
        yield None
        yield pickle.dumps(Payload(trap))
        twin = (theirs / name).read_bytes()
        if twin != content:
            yield twin

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    folder = run / "checkpoints" / last.name
    before = f"step-{STEPS - 1:06d}"
    for name in files_of(last):
        path = folder / name
        for content in harms(path, name):
            path.unlink() if content is None else path.write_bytes(content)
            assert checkpoint.newest(run).name == before, (name, content and content[:20])
        shutil.copyfile(last / name, path)
    assert checkpoint.newest(run).name == last.name
    (folder / "more.txt").write_text("")
    assert checkpoint.newest(run).name == before
    (folder / "more.txt").unlink()
    shutil.rmtree(folder)
    shutil.copytree(theirs, folder)
    assert checkpoint.newest(run).name == before, "another run's, whole"
    assert not trap.exists()


def test_a_broken_checkpoint_is_set_aside_and_the_run_is_as_it_would_have_been(
    tmp_path, whole, reward, capsys
):
    run = tmp_path / "run"
    killed_at(3, run, flags(tmp_path, "run", *reward))
    last = checkpoint.newest(run)
    weights_file = last / "critic.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[len(content) // 2] ^= 1
    weights_file.write_bytes(content)
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "broken" in line]
    assert len(said) == 1 and "critic.safetensors is not as it was written" in said[0]
    assert list((run / "checkpoints").glob(f"{last.name}.broken-*"))
    assert metrics(run) == metrics(whole)
    assert weights(run) == weights(whole)


def test_without_a_whole_checkpoint_nothing_is_made_up(tmp_path, whole, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for folder in (run / "checkpoints").iterdir():
        (folder / "state.pt").write_bytes(b"")
    assert main(["train", "--resume", str(run), "--steps", "9"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "no whole checkpoint left" in said[-1] and "state.pt has another size" in said[-1]


def test_more_steps_go_on_from_a_finished_run(tmp_path, capsys):
    words = [w if w != str(STEPS) else "2" for w in flags(tmp_path, "run")]
    assert main(words) == 0
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert "--steps N" in capsys.readouterr().out
    assert main(["train", "--resume", str(tmp_path / "run"), "--steps", "3"]) == 0
    assert [m["step"] for m in metrics(tmp_path / "run")] == [0, 1, 2]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["training"]["steps"] == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--resume", "{empty}"], ["resume", "{empty}", "config.yaml"]),
        (["--resume", "no/such/run"], ["resume", "no/such/run"]),
        (["--resume", "{run}", "--seed", "1"], ["seed", "cannot change"]),
        (["--resume", "{run}", "--config", "x.yaml"], ["config", "x.yaml"]),
        (["--runs-dir", "{parent}", "--name", "{name}"], ["--name", "--resume", "{name}"]),
    ],
)
def test_wrong_resumes_are_one_line(tmp_path, whole, capsys, words, said):
    places = {
        "empty": str(tmp_path), "run": str(whole), "parent": str(whole.parent), "name": whole.name
    }  # fmt: skip
    before = sorted(Path(whole).rglob("*"))
    assert main(["train", *(w.format(**places) for w in words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for word in said:
        assert word.format(**places) in error
    assert sorted(Path(whole).rglob("*")) == before
