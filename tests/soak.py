"""Kills at random moments, and a long run: longer than a test may take.

    python tests/soak.py kills 100    what was killed, begun again, is what nothing had disturbed
    python tests/soak.py faults 1     every, or every second, third write of a run fails, in turn
    python tests/soak.py steps 2000   memory flat within 2 % after the first 200 steps, speed in 5 %

`make soak` runs all three. The moments are drawn from --seed, which is printed.
"""

from __future__ import annotations

import argparse
import json
import math
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
TRAINED = {
    "dfpo": [],
    "dfpo, seldom checkpoints": ["--checkpoint-every", "3"],
    "ppo": ["--algorithm", "ppo"],
    "lora": ["--lora.rank", "2"],
    "two processes": [],
    "two processes, sharded": ["--shard", "true"],
}
# What is said again in the same words, and what it then leaves.
SAID_AGAIN = {
    "compare": (["compare", "recipe.yaml", "--jobs", "2"], "out/results.jsonl"),
    "tune": (["tune", "recipe.yaml", "--jobs", "2"], "recipe.tuned.yaml"),
    "critic": (["critic", "runs/run", "--answers", "1", "--plays", "16"], "runs/run/critic.json"),
    "report": (["report", "runs/run"], "runs/run/report.html"),
}
RECIPE = """
output: out
arms: {dfpo: {}, ppo: {algorithm: ppo}}
noises: [none]
seeds: 1
base: {steps: 3, critic.warmup_steps: 1, eval.prompts: 4, rollout.prompts: 2, rollout.samples: 2}
"""
SEARCH = """
tuned: recipe.tuned.yaml
tune:
  prompts: 4
  arms:
    dfpo: {policy.learning_rate: [1.0e-4, 2.0e-4]}
    ppo: {policy.learning_rate: [1.0e-4, 2.0e-4]}
"""


def start(folder: Path, words: list[str], processes: int = 1) -> list[subprocess.Popen]:
    """The processes of one command, in a group of their own each."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    if processes > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    begun = []
    for rank in range(processes):
        own = {}
        if processes > 1:
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        begun.append(
            subprocess.Popen(
                [sys.executable, "-m", "dfpo", *words], cwd=folder, start_new_session=True,
                env=env | {name: str(value) for name, value in own.items()},
                stdout=subprocess.DEVNULL, stderr=(folder / "said.txt").open("a"),
            )
        )  # fmt: skip
    return begun


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
    """Runs of every kind, killed until ``count`` kills have met one at work."""
    runs: Counter[str] = Counter()
    killed: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as top:
        whole = {kind: Whole(Path(top) / "whole" / kind, kind) for kind in [*TRAINED, *SAID_AGAIN]}
        while killed.total() < count:
            # The kinds in turn, so that a short soak has them all too.
            kind = min(whole, key=lambda name: runs[name])
            folder = Path(top) / f"{runs.total()}"
            killed[kind] += whole[kind].disturb(folder, draws)
            runs[kind] += 1
            shutil.rmtree(folder)
            print(f"{killed.total()} kills, {runs.total()} runs: {kind}", flush=True)
    print(f"{killed.total()} kills: {dict(killed)}; {runs.total()} runs, each as if nothing had "
          f"happened: {dict(runs)}")  # fmt: skip


class Whole:
    """One kind of run, as it is when nothing disturbs it."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind, self.processes = kind, 2 if "two" in kind else 1
        self.words = ["train", *SMALL, *TRAINED.get(kind, []), "--name", "run"]
        self.begun = folder.with_name(f"{kind}, begun")
        self.begun.mkdir(parents=True)
        (self.begun / "recipe.yaml").write_text(RECIPE + (SEARCH if kind == "tune" else ""))
        if kind in SAID_AGAIN:
            if kind in ("critic", "report"):
                finish(self.begun, self.words)
            self.words = SAID_AGAIN[kind][0]

        shutil.copytree(self.begun, folder)
        began = time.monotonic()
        finish(folder, self.words, self.processes)
        self.seconds = time.monotonic() - began
        self.outcome = self.outcome_in(folder)

    def outcome_in(self, folder: Path) -> tuple:
        """What must be the same."""
        if self.kind in TRAINED:
            return outcome(folder / "runs" / "run")
        text = (folder / SAID_AGAIN[self.kind][1]).read_text()
        if self.kind != "compare":
            return (text,)
        rows = [json.loads(line) for line in text.splitlines()]
        return ([(row["arm"], row["seed"], row["after"]) for row in rows],)

    def disturb(self, folder: Path, draws: random.Random) -> int:
        """Kills it once to three times and lets it end; how many kills met it at work."""
        shutil.copytree(self.begun, folder)
        moments = [draws.uniform(0.2, 1.0) * self.seconds for _ in range(draws.randint(1, 3))]
        killed = 0
        for moment in moments:
            killed += kill_within(folder, self.next_words(folder), moment, self.processes)
        finish(folder, self.next_words(folder), self.processes)
        if self.outcome_in(folder) != self.outcome:
            raise SystemExit(f"{self.kind} is another run after {killed} kills")
        return killed

    def next_words(self, folder: Path) -> list[str]:
        if self.kind in TRAINED and (folder / "runs" / "run").is_dir():
            return ["train", "--resume", "runs/run"]
        return self.words


def steps(count: int) -> None:
    """Resident memory and processor seconds a token along one run. A machine's speed and the
    length of answers change too: the last steps are compared with the next ones of the same run,
    made by a new process."""
    words = ["train", *SMALL, "--steps", str(count), "--checkpoint-every", "50", "--name", "run"]
    with tempfile.TemporaryDirectory() as top:
        windows = [(200, 400), (count - 250, count - 50)]  # the report takes time too
        (early, _), (late, old) = watched(Path(top), [*words, "--eval.prompts", "0"], windows)
        resumed = ["train", "--resume", "runs/run", "--steps", str(count + 300)]
        ((_, new),) = watched(Path(top), resumed, [(count + 50, count + 250)])
    print(f"{count} steps: {early:.0f} MB then {late:.0f} MB ({late / early - 1:+.1%}); "
          f"{old:.3f} ms a token, of a new process {new:.3f} ({old / new - 1:+.1%})")  # fmt: skip
    if late > 1.02 * early or old > 1.05 * new:
        raise SystemExit("memory or time grows")


def watched(
    folder: Path, words: list[str], windows: list[tuple[int, int]]
) -> list[tuple[float, float]]:
    """The command's run, seen from outside: the median megabytes and the processor milliseconds a
    token within each window of its steps."""
    (run,) = start(folder, words)
    log, seen = folder / "runs" / "run" / "metrics.jsonl", []
    while run.poll() is None:
        time.sleep(0.2)
        if log.exists():
            memory, seconds = used(run.pid)
            if memory > 0:
                seen.append((log.read_text().count("\n"), memory, seconds))
    if run.returncode:
        raise SystemExit((folder / "said.txt").read_text()[-2000:])
    rows = [json.loads(line) for line in log.read_text().splitlines()]

    medians = []
    for begin, end in windows:
        some = [look for look in seen if begin <= look[0] <= end]
        (begun, _, before), (ended, _, after) = some[0], some[-1]
        tokens = sum(row["tokens"] for row in rows[begun:ended])
        medians.append((median(m for _, m, _ in some), 1e3 * (after - before) / tokens))
    return medians


def used(pid: int) -> tuple[float, float]:
    """Resident megabytes of a process, and the processor seconds of all its threads."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        after_name = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return math.nan, math.nan  # it ended just now
    user, system = int(after_name[11]), int(after_name[12])
    return (
        int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6,
        (user + system) / os.sysconf("SC_CLK_TCK"),
    )


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
