"""Several processes: the run of one, up to the order of sums."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from dfpo.config import ConfigError, build_config
from dfpo.run.setup import start_processes

STEPS = 5
SMALL = [
    "--steps", STEPS, "--rollout.prompts", 5, "--rollout.samples", 3, "--critic.warmup-steps", 2,
    "--eval.prompts", 0, "--plots", "false", "--device", "cpu",
    "--noise", "flip=0.2",
]  # fmt: skip


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(folder, processes, *flags):
    return launch(folder, processes, "-m", "dfpo", "train", *map(str, flags))


def launch(folder, processes, *words):
    """``processes`` of Python that meet as under torchrun."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "OMP_NUM_THREADS": "1"}
    found = []
    for rank in range(processes):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        own["LOCAL_WORLD_SIZE"] = processes
        env = os.environ | shared
        if processes > 1:
            env |= {name: str(value) for name, value in own.items()}
        command = [sys.executable, *words]
        found.append(
            subprocess.Popen(
                command, cwd=folder, env=env, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    return found


def train(folder, name, processes, *flags):
    """Metrics and weights of a run, and what its processes said."""
    said = [run.communicate(timeout=120) for run in start(folder, processes, *flags)]
    assert (folder / "runs" / name / "summary.json").exists(), said
    return *read(folder / "runs" / name), said


def read(run):
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (file,) = (run / "policy").glob("*model.safetensors")
    weights = load_file(file)
    return metrics, weights | load_file(run / "critic.safetensors")


def same(one, other):
    for a, b in zip(one[0], other[0], strict=True):
        kept = {k: v for k, v in a.items() if not k.startswith("perf/")}
        assert {k: b[k] for k in kept} == pytest.approx(kept, abs=1e-5, rel=1e-5)
    for name, weight in one[1].items():
        assert (weight - other[1][name]).abs().max() < 1e-5, name
    assert one[1].keys() == other[1].keys()


SEVERAL = """
import json, sys
from dfpo.config import build_config
from dfpo.run.train import train
for name, own in json.loads(sys.argv[2]).items():
    train(build_config({
        "algorithm": name, "name": name, "steps": 5, "rollout.prompts": 5, "rollout.samples": 3,
        "critic.warmup_steps": 2, "eval.prompts": 0, "plots": False, "device": "cpu",
        "noise": "flip=0.2", "shard": sys.argv[1], **own,
    }))
"""
ARMS = {
    "dfpo": {},
    "dfpo-rank": {
        "reward.space": "cdf", "reward.space_by": "domain", "reward.space_window": 20,
        "noise": "normal=.05..3",
    },
    "ppo": {},
    "grpo": {},
}  # fmt: skip
WHOLE = {
    "lora": {"algorithm": "dfpo", "lora.rank": 4},
    "own": {
        "algorithm": "dfpo", "reward.functions": "own.py:score", "rollout.function": "own.py:play",
        "noise": "none", "steps": 3,
    },
}  # fmt: skip
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Each arm in one process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "own.py").write_text(OWN)
    (run,) = launch(folder, 1, "-c", SEVERAL, "false", json.dumps(ARMS | WHOLE))
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    return folder


@pytest.mark.parametrize("processes, shard", [(2, "true"), (3, "false")])
def test_several_processes_are_one(tmp_path, alone, processes, shard):
    """15 answers to 5 prompts: shares are uneven, and a prompt's answers lie in several. Whole
    models in each process, or a share of each."""
    (tmp_path / "own.py").write_text(OWN)
    arms = ARMS if shard == "true" else ARMS | WHOLE
    runs = launch(tmp_path, processes, "-c", SEVERAL, shard, json.dumps(arms))
    said = [run.communicate(timeout=300) for run in runs]
    assert not any(run.returncode for run in runs), said
    for arm in arms:
        many = read(tmp_path / "runs" / arm)
        same(read(alone / "runs" / arm), many)
        last = many[0][-1]
        assert last["perf/processes"] == processes
        rows = [last[f"perf/rows/{i}"] for i in range(processes)]
        assert sum(rows) == 15 and min(rows) >= 1

    # Each holds the whole rollout, so what is told, and maps made of it, are equal by bits.
    one, many = (
        load_file(folder / "runs/dfpo-rank/told_rewards.safetensors")
        for folder in (alone, tmp_path)
    )
    assert one.keys() == many.keys() and len(one) == 3
    assert all(one[name].equal(many[name]) for name in one)

    if "own" in arms:
        assert "scored" in said[0][0] and "played" in said[0][0]
    words = [line for out, _ in said[1:] for line in out.splitlines()]
    assert not [line for line in words if not line.startswith("[Gloo]")], "one voice"
    assert not any("%" in err for _, err in said[1:]), "one bar"


def test_a_run_of_two_resumes_on_three_and_on_one(tmp_path, alone):
    first = ["--name", "parts", *SMALL, "--steps", 2]
    train(tmp_path, "parts", 2, *first, "--shard", "true")
    train(tmp_path, "parts", 3, "--resume", "runs/parts", "--steps", 4)
    last = train(tmp_path, "parts", 1, "--resume", "runs/parts", "--steps", STEPS)
    same(read(alone / "runs" / "dfpo"), last)


def test_wrong_input_is_one_line_from_all(tmp_path):
    out = [run.communicate(timeout=60) for run in start(tmp_path, 2, "--model", "nowhere")]
    assert "".join(err for _, err in out).count("error:") == 1
    assert not (tmp_path / "runs").exists()


def test_a_killed_process_ends_the_others_with_a_checkpoint(tmp_path):
    runs = start(tmp_path, 2, "--name", "cut", *SMALL, "--steps", 500)
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
    train(tmp_path, "cut", 1, "--resume", "runs/cut", "--steps", 6)


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
