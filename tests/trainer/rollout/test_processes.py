"""Several processes: the run of one, up to the order of sums."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from accelerate.state import AcceleratorState
from ranks import one_of_them, train_runs
from safetensors.torch import load_file

from dfpo.__main__ import main
from dfpo.config import ConfigError, build_config
from dfpo.run.setup import start_processes
from dfpo.study import workers

STEPS = 5
SETTINGS = {
    "steps": STEPS, "rollout.prompts": 5, "rollout.samples": 3, "critic.warmup_steps": 2,
    "eval.prompts": 0, "plots": False, "device": "cpu", "noise": "flip=0.2",
}  # fmt: skip
ARMS = {
    "dfpo": {},
    "dfpo-rank": {
        "reward.space": "cdf", "reward.space_by": "domain", "reward.space_window": 20,
        "noise": "normal=.05..3",
    },
    "ppo": {},
    "grpo": {},
    # One answer at a time: of two processes one has eight parts and the other seven, in sampling
    # and in looking; and a loss of somebody's own, which looks by itself.
    "singly": {"algorithm": "dfpo", "micro_tokens": 1, "steps": 3},
    "own loss": {
        "algorithm": "grpo", "policy.loss": "looks by itself", "micro_tokens": 1, "steps": 2,
        "critic.warmup_steps": 0,
    },
}  # fmt: skip
WHOLE = {
    "lora": {"algorithm": "dfpo", "lora.rank": 4},
    "own": {
        "algorithm": "dfpo", "reward.functions": "own.py:score", "rollout.function": "own.py:play",
        "noise": "none", "steps": 3,
    },
}  # fmt: skip
PARTS = {"parts": {"algorithm": "dfpo", "steps": 2}}
# Three turns of unequal length, with two tokens of a tool.
OWN = """
def score(completions, **columns):
    print('scored', flush=True)
    return [float(len(c) % 2) for c in completions]

def play(prompts, generate):
    print('played', flush=True)
    ids = [turn.token_ids + [5, 6] for turn in generate(prompts, max_new_tokens=3)]
    more = generate(ids[:3], max_new_tokens=2) + generate(ids[3:])
    answers = [a + turn.token_ids for a, turn in zip(ids, more)]
    mask = [[i not in (len(a) - 2, len(a) - 1) for i in range(len(b))]
            for a, b in zip(ids, answers)]
    return {'completion_ids': answers, 'env_mask': mask}
"""


def runs_of(arms, shard="false"):
    return [
        {"algorithm": name, "name": name, "shard": shard} | SETTINGS | own
        for name, own in arms.items()
    ]


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environments(processes):
    """What torchrun says to each."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "OMP_NUM_THREADS": "1"}
    for rank in range(processes):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        own["LOCAL_WORLD_SIZE"] = processes
        yield shared | {name: str(value) for name, value in own.items()}


def train_together(folder, processes, shard, arms, resumed=None):
    """The folder of the runs and what each process said: (stdout, stderr). The processes are forks
    of one in which the trainer is loaded, which takes longer than a run."""
    (folder / "own.py").write_text(OWN)
    context = workers.server()
    started = [
        context.Process(
            target=one_of_them, args=(folder, environment, runs_of(arms, shard), resumed)
        )
        for environment in environments(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=300)
    said = [
        tuple((folder / f"{rank}.{stream}").read_text() for stream in ("stdout", "stderr"))
        for rank in range(processes)
    ]
    assert not any(process.exitcode for process in started), said
    return folder, said


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Each arm in one process, this one."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "own.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train_runs(runs_of(ARMS | WHOLE))
    return folder


def some(*names):
    return {name: ARMS[name] for name in names}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """By two processes, each of which holds a share of the models."""
    arms = some("dfpo", "grpo", "singly", "own loss") | PARTS
    return train_together(tmp_path_factory.mktemp("shared"), 2, "true", arms)


@pytest.fixture(scope="module")
def several(tmp_path_factory, shared):
    """By three, each of which holds them whole; they go on with a run of the two."""
    folder = tmp_path_factory.mktemp("several")
    shutil.copytree(shared[0] / "runs/parts", folder / "runs/parts")
    arms = some("dfpo-rank", "ppo") | WHOLE
    return train_together(folder, 3, "false", arms, "parts")


@pytest.fixture(scope="module")
def others_shared(tmp_path_factory):
    arms = some("dfpo-rank", "ppo")
    return train_together(tmp_path_factory.mktemp("others_shared"), 2, "true", arms)


@pytest.fixture(scope="module")
def others_several(tmp_path_factory):
    arms = some("dfpo", "grpo")
    return train_together(tmp_path_factory.mktemp("others_several"), 3, "false", arms)


def read(run):
    """Metrics and weights of a run."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (file,) = (run / "policy").glob("*model.safetensors")
    weights = load_file(file)
    return metrics, weights | load_file(run / "critic.safetensors")


def same(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        kept = {k: v for k, v in a.items() if not k.startswith("perf/")}
        assert {k: b[k] for k in kept} == pytest.approx(kept, abs=1e-5, rel=1e-5)
    for name, weight in one[1].items():
        off = (weight - other[1][name]).abs()
        # Adam divides a gradient by its own size: of one that is all but zero, rounding decides the
        # step. That is a weight or two of thousands, and which ones depends on the processor.
        assert off.max() < 5e-5 and (off > 1e-5).sum() <= 2, name
    assert one[1].keys() == other[1].keys()


@pytest.mark.parametrize(
    "fixture, arms",
    [
        ("shared", ["dfpo", "grpo", "singly", "own loss"]),
        ("several", ["dfpo-rank", "ppo", *WHOLE]),
        pytest.param("others_shared", ["dfpo-rank", "ppo"], marks=pytest.mark.long),
        pytest.param("others_several", ["dfpo", "grpo"], marks=pytest.mark.long),
    ],
)
def test_several_processes_are_one(request, alone, fixture, arms):
    """15 answers to 5 prompts: shares are uneven, and a prompt's answers lie in several."""
    folder, said = request.getfixturevalue(fixture)
    for arm in arms:
        many = read(folder / "runs" / arm)
        same(read(alone / "runs" / arm), many)
        last = many[0][-1]
        assert last["perf/processes"] == len(said)
        rows = [last[f"perf/rows/{i}"] for i in range(len(said))]
        assert sum(rows) == 15 and min(rows) >= 1

    if "dfpo-rank" not in arms:
        return
    # Each holds the whole rollout, so what is told, and maps made of it, are equal by bits.
    one, many = (
        load_file(place / "runs/dfpo-rank/told_rewards.safetensors") for place in (alone, folder)
    )
    assert one.keys() == many.keys() and len(one) == 3
    assert all(one[name].equal(many[name]) for name in one)


def test_there_is_one_voice(several):
    _, said = several
    assert "scored" in said[0][0] and "played" in said[0][0]
    words = [line for out, _ in said[1:] for line in out.splitlines()]
    assert not [line for line in words if not line.startswith("[Gloo]")]
    assert not any("%" in err for _, err in said[1:]), "one bar"
    assert "".join(err for _, err in said).count("error:") == 1, "wrong input is one line from all"
    assert "model: nowhere holds no config.json" in said[0][1]


def test_a_run_of_two_resumes_on_three_and_on_one(several, alone, tmp_path):
    parts = tmp_path / "parts"
    shutil.copytree(several[0] / "runs/parts", parts)
    assert main(["train", "--resume", str(parts), "--steps", str(STEPS)]) == 0
    counts = [row.get("perf/processes") for row in read(parts)[0]]
    assert counts == [2, 2, 3, 3, None]
    same(read(alone / "runs/dfpo"), read(parts))


def test_a_killed_process_ends_the_others_with_a_checkpoint(tmp_path):
    flags = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value).lower())]
    words = [sys.executable, "-m", "dfpo", "train", "--name", "cut", *flags, "--steps", "500"]
    runs = [
        subprocess.Popen(
            words, cwd=tmp_path, env=os.environ | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for environment in environments(2)
    ]  # fmt: skip
    log = tmp_path / "runs" / "cut" / "metrics.jsonl"
    started = time.time()
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert time.time() - started < 90 and runs[0].poll() is None
        time.sleep(0.05)
    runs[1].send_signal(signal.SIGKILL)
    out, err = runs[0].communicate(timeout=60)
    runs[1].communicate()
    assert runs[0].returncode == 1
    assert "Traceback" not in err and "a process of this run is gone" in err
    steps = len(log.read_text().splitlines())
    assert main(["train", "--resume", str(log.parent), "--steps", str(steps + 1)]) == 0


@pytest.fixture
def fresh_accelerate():
    """Accelerate keeps one state for each process, made on first use."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    "variable, value, word",
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "8", "gradient accumulation"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "--dtype"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "accelerate"),
    ],
)
def test_what_a_launcher_asks_for_is_heard(fresh_accelerate, monkeypatch, variable, value, word):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=word):
        start_processes(build_config({"device": "cpu"}))
