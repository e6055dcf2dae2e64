"""What a GPU says of this project, in one go: ``make gpu-day OUT=folder``.

Phases run in the order of their worth. Each is a process of its own with a time limit of its own,
and all of them end within TOTAL_SECONDS. A phase that fails or is late is reported, and the next
one starts. The folder gets ``gpu-day.json``, written anew after each phase, and ``gpu-day.log``.

    make gpu-day OUT=results          all phases, on a machine with a GPU
    make gpu-day PHASES=checks        is it right: the first of two calls, on one machine or two
    make gpu-day PHASES=times         how fast is it: the second
    make gpu-day PHASES="build tests" some of them
    make gpu-day DRY=1                on a CPU, in small sizes, with stand-ins
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TOTAL_SECONDS = 540
DRY = os.environ.get("DRY", "0") not in ("", "0")


class Phase(NamedTuple):
    name: str
    limit: float  # seconds
    command: list[str]
    tool: str | None = None  # an executable without which the phase has no meaning
    beside: bool = False  # runs beside the phase before it: neither measures time


def python(*words: str) -> list[str]:
    return [sys.executable, *words]


def script(name: str, *words: str) -> list[str]:
    return python(str(HERE / f"{name}.py"), *words)


# What a tool of CUDA's would be in front of; without a GPU the case runs without it.
def under(tool: list[str], command: list[str]) -> list[str]:
    return command if DRY else [*tool, *command]


MEMCHECK = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9"]
RACECHECK = ["compute-sanitizer", "--tool", "racecheck", "--error-exitcode", "9"]
# The clocks are left as they are. Warps that could issue and the reasons why others could not.
NCU = [
    "ncu", "--clock-control", "none", "--csv", "--page", "raw",
    "--section", "SpeedOfLight", "--section", "Occupancy", "--section", "WarpStateStats",
    "--section", "LaunchStats", "--kernel-name",
    "regex:(integrate|adjoint|coefficients|quantile_huber|scan|count)_kernel.*",
]  # fmt: skip

# One limit after the other they fill TOTAL_SECONDS; of what runs beside another, the longer counts.
# What is right comes before what is fast, and a phase that only confirms before none.
PHASES = [
    Phase("build", 60, script("build")),
    Phase("tests", 150, script("gpu_tests")),
    Phase("parity", 110, script("parity"), beside=True),
    Phase("demo", 150, script("demo"), beside=True),
    Phase("memcheck", 150, under(MEMCHECK, script("small_cases")), "compute-sanitizer",
          beside=True),
    Phase("racecheck", 150, under(RACECHECK, script("small_cases", "--cuda")), "compute-sanitizer",
          beside=True),
    Phase("environment", 30, script("environment")),
    Phase("ops", 120, script("op_times")),
    Phase("models", 90, script("model_steps")),
    Phase("profile", 40, under(NCU, script("small_cases", "--heavy")), "ncu"),
    Phase("sweep", 50, script("sweep")),
]  # fmt: skip
# Phases of one call each; both build, because a machine that is lent again is bare.
SETS = {
    "checks": ["build", "tests", "parity", "demo", "memcheck", "racecheck"],
    "times": ["build", "environment", "ops", "models", "profile", "sweep"],
}


class Result(NamedTuple):
    name: str
    outcome: str  # passed, failed (exit status), late, skipped (reason)
    seconds: float
    record: object  # what the phase wrote, None if nothing


class Running:
    """A phase at work, its output in a file."""

    def __init__(self, phase: Phase, folder: Path, left: float) -> None:
        self.phase, self.started = phase, time.monotonic()
        self.deadline = self.started + min(phase.limit, left)
        self.json, self.log = folder / f"{phase.name}.json", folder / f"{phase.name}.log"
        environment = os.environ | {"GPU_DAY_JSON": str(self.json), "PYTHONUNBUFFERED": "1"}
        if DRY:
            # No GPU is looked for, and Triton's kernels run on its interpreter.
            environment |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
        paths = [str(ROOT), str(ROOT / "tests"), str(ROOT / "bench"), str(HERE)]
        environment["PYTHONPATH"] = os.pathsep.join([*paths, environment.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            phase.command, stdout=self.log.open("wb"), stderr=subprocess.STDOUT, cwd=ROOT,
            env=environment, start_new_session=True,
        )  # fmt: skip

    def result(self) -> Result | None:
        """None while it runs and has time."""
        seconds, status = time.monotonic() - self.started, self.process.poll()
        late = status is None and time.monotonic() > self.deadline
        if status is None and not late:
            return None
        # What the phase has started ends with it: it would disturb the times of the next.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        outcome = "late" if late else f"failed (status {status})" if status else "passed"
        record = json.loads(self.json.read_text()) if self.json.exists() else None
        return Result(self.phase.name, outcome, seconds, record)


def finished(running: list[Running]) -> Iterator[tuple[Running, Result]]:
    """Phases that run at the same time, each as soon as it ends."""
    while running:
        for phase in tuple(running):
            if result := phase.result():
                running.remove(phase)
                yield phase, result
        time.sleep(0.05)


def groups(names: list[str]) -> list[list[Phase]]:
    """The phases of these names; those of one group run at the same time."""
    together: list[list[Phase]] = []
    for phase in PHASES:
        if phase.beside:
            together[-1].append(phase)
        else:
            together.append([phase])
    chosen = [[phase for phase in group if phase.name in names] for group in together]
    return [group for group in chosen if group]


def run_all(names: list[str], out: Path, seconds: float) -> list[Result]:
    end = time.monotonic() + seconds
    results: list[Result] = []
    log = (out / "gpu-day.log").open("w")
    with tempfile.TemporaryDirectory() as scratch:
        for group in groups(names):
            running = []
            for phase in group:
                left = end - time.monotonic()
                if left < 5:
                    results.append(Result(phase.name, "skipped (no time left)", 0.0, None))
                elif phase.tool and not DRY and not shutil.which(phase.tool):
                    results.append(Result(phase.name, f"skipped (no {phase.tool})", 0.0, None))
                else:
                    running.append(Running(phase, Path(scratch), left))
            for phase, result in finished(running):
                results.append(result)
                text = phase.log.read_text(errors="replace")
                log.write(
                    f"===== {result.name}: {result.outcome}, {result.seconds:.0f} s\n{text}\n"
                )
                log.flush()
                print(f"{result.name:12} {result.outcome}, {result.seconds:.0f} s", flush=True)
                if result.outcome != "passed":
                    print("    " + "\n    ".join(text.splitlines()[-12:]), flush=True)
                write(results, out)
    return results


def write(results: list[Result], out: Path) -> None:
    path = out / "gpu-day.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({r.name: r._asdict() for r in results}, indent=1) + "\n")
    partial.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make gpu-day", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "gpu-day"))
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for all phases")
    names = [phase.name for phase in PHASES]
    choices = ", ".join([*SETS, *names])
    parser.add_argument("phases", nargs="*", metavar="phase", help=f"of {choices}")
    options = parser.parse_args()
    if unknown := set(options.phases) - {*SETS, *names}:
        parser.error(f"{', '.join(sorted(unknown))}: no such phase, must be of {choices}")
    chosen = [name for word in options.phases for name in SETS.get(word, [word])]
    options.out.mkdir(parents=True, exist_ok=True)
    results = run_all(chosen or names, options.out, options.seconds)

    import report  # needs tabulate, which a broken environment may lack

    print(report.table({r.name: r._asdict() for r in results}))
    return 0 if all(r.outcome == "passed" for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
