"""Kills at random moments, and a long run: longer than a test may take.

    python tests/soak.py kills 100    each killed run, resumed, is the run that nothing disturbed
    python tests/soak.py faults 1     every, or every second, third write of a run fails, in turn
    python tests/soak.py steps 2000   memory flat within 2 % after the first 200 steps, speed in 5 %

`make soak` runs all three. The moments are drawn from --seed, which is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

SMALL = [
    "--steps", "5", "--critic.warmup-steps", "2", "--eval.prompts", "2", "--eval.examples", "1",
    "--plots", "false", "--rollout.prompts", "3", "--rollout.samples", "2", "--noise", "flip=0.2",
]  # fmt: skip
KINDS = {
    "dfpo": [],
    "dfpo, seldom checkpoints": ["--checkpoint-every", "3"],
    "ppo": ["--algorithm", "ppo"],
    "lora": ["--lora.rank", "2"],
    "two processes": [],
    "two processes, sharded": ["--shard", "true"],
}
RECIPE = """
output: out
arms: {dfpo: {}, ppo: {algorithm: ppo}}
noises: [none]
seeds: 1
base: {steps: 3, critic.warmup_steps: 1, eval.prompts: 4, rollout.prompts: 2, rollout.samples: 2}
"""


def start(folder: Path, words: list[str], processes: int = 1) -> list[subprocess.Popen]:
    """The processes of one command, in a group of their own each."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    found = []
    for rank in range(processes):
        own = {}
        if processes > 1:
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        found.append(
            subprocess.Popen(
                [sys.executable, "-m", "dfpo", *words], cwd=folder, start_new_session=True,
                env=env | {name: str(value) for name, value in own.items()},
                stdout=subprocess.DEVNULL, stderr=(folder / "said.txt").open("a"),
            )
        )  # fmt: skip
    return found


def finish(folder: Path, words: list[str], processes: int = 1) -> None:
    """Runs a command to its end. Raises SystemExit with what it said where that is no success."""
    (folder / "said.txt").write_text("")
    runs = start(folder, words, processes)
    if any([run.wait() for run in runs]):
        raise SystemExit(f"{words} failed: {(folder / 'said.txt').read_text()[-2000:]}")


def kill_within(folder: Path, words: list[str], seconds: float, processes: int = 1) -> bool:
    """Starts a command and kills it, with all its processes, after ``seconds``; whether it was
    still at work."""
    runs = start(folder, words, processes)
    time.sleep(seconds)
    alive = any(run.poll() is None for run in runs)
    for run in runs:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    return alive


def outcome(run: Path) -> tuple[list[dict], list[bytes]]:
    """What must be the same: metrics but for time, weights to the bit."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    kept = [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]
    files = [*sorted((run / "policy").glob("*.safetensors")), run / "critic.safetensors"]
    return kept, [path.read_bytes() for path in files]


def kills(count: int, draws: random.Random) -> None:
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as top:
        whole: dict[str, tuple] = {}
        took: dict[str, float] = {}
        for number in range(count):
            kind = draws.choice([*KINDS, "compare"])
            processes = 2 if "two" in kind else 1
            folder = Path(top) / f"{number}"
            folder.mkdir()
            if kind == "compare":
                counts["killed"] += kill_compare(folder, draws, whole)
                counts[kind] += 1
                continue

            words = ["train", *SMALL, *KINDS[kind], "--name", "run"]
            if kind not in whole:
                first = folder / "whole"
                first.mkdir()
                began = time.monotonic()
                finish(first, words, processes)
                took[kind] = time.monotonic() - began
                whole[kind] = outcome(first / "runs" / "run")
            for _ in range(draws.randint(1, 3)):
                begun = (folder / "runs" / "run").is_dir()
                again = ["train", "--resume", "runs/run"] if begun else words
                moment = draws.uniform(0.2, 1.0) * took[kind]
                counts["killed"] += kill_within(folder, again, moment, processes)
            begun = (folder / "runs" / "run").is_dir()
            finish(folder, ["train", "--resume", "runs/run"] if begun else words, processes)
            if outcome(folder / "runs" / "run") != whole[kind]:
                raise SystemExit(f"kill {number}: {kind} is another run after its kills")
            counts[kind] += 1
            shutil.rmtree(folder)
    print(f"{count} runs, each as if nothing had happened: {dict(counts)}")


def kill_compare(folder: Path, draws: random.Random, whole: dict[str, tuple]) -> int:
    """A comparison killed at two moments gives the table of one that was not."""
    (folder / "recipe.yaml").write_text(RECIPE)
    words = ["compare", "recipe.yaml", "--jobs", "2"]

    def table() -> tuple:
        rows = [json.loads(x) for x in (folder / "out" / "results.jsonl").read_text().splitlines()]
        return ([(r["arm"], r["seed"], r["after"]) for r in rows],)

    if "compare" not in whole:
        finish(folder, words)
        whole["compare"] = table()
        shutil.rmtree(folder / "out")
    killed = sum(kill_within(folder, words, draws.uniform(1, 25)) for _ in range(2))
    finish(folder, words)
    if table() != whole["compare"]:
        raise SystemExit("a killed comparison gives another table")
    return killed


def steps(count: int) -> None:
    """Resident memory and seconds a step along one run, watched from outside."""
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top)
        words = ["train", *SMALL, "--steps", str(count), "--checkpoint-every", "50"]
        (run,) = start(folder, [*words, "--eval.prompts", "0", "--name", "run"])
        log, memory, when = folder / "runs" / "run" / "metrics.jsonl", {}, {}
        while run.poll() is None:
            time.sleep(0.2)
            if log.exists():
                done = log.read_text().count("\n")
                pages = Path(f"/proc/{run.pid}/statm").read_text().split()
                memory[done] = int(pages[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if pages else 0
                when[done] = time.monotonic()
        if run.returncode:
            raise SystemExit((folder / "said.txt").read_text()[-2000:])
        rows = [json.loads(line) for line in log.read_text().splitlines()]
    early = [m for done, m in memory.items() if 200 <= done < 400]
    late = [m for done, m in memory.items() if done >= count - 200]
    speed = [row["perf/seconds"] / row["tokens"] for row in rows]
    a, b = median(early), median(late)
    c, d = median(speed[200:400]), median(speed[-200:])
    print(f"{count} steps: {a:.0f} MB then {b:.0f} MB ({b / a - 1:+.1%}); "
          f"{1e3 * c:.3f} ms a token then {1e3 * d:.3f} ({d / c - 1:+.1%})")  # fmt: skip
    if b > 1.02 * a or d > 1.05 * c:
        raise SystemExit("memory or time grows")


def faults(stride: int) -> None:
    """Each write of a run refused, on a disk that is full from then on, and gone."""
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "trainer" / "run")]
    from disk_faults import KINDS, command_with_fault
    from test_disk_faults import check, words

    counts: Counter[tuple] = Counter()
    with tempfile.TemporaryDirectory() as top:
        runs = Path(top) / "runs"
        writes = command_with_fault(words(runs), runs).writes
        for kind in KINDS:
            for at in range(0, writes, stride):
                shutil.rmtree(runs, ignore_errors=True)
                outcome = command_with_fault(words(runs), runs, at=at, kind=kind)
                try:
                    check(runs, outcome)
                except AssertionError as error:
                    raise SystemExit(f"write {at} of {writes} {kind}: {error}") from None
                counts[kind, outcome.status] += 1
    print(f"{writes} writes; (kind, exit status): {dict(counts)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("kills", "faults", "steps"))
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    if options.what == "kills":
        kills(options.count, random.Random(options.seed))
    elif options.what == "faults":
        faults(options.count)
    else:
        steps(options.count)
