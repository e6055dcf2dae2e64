"""How a number is taken; README.md beside this file says how to read it.

Every provider's result is compared with the float64 reference before anything is timed, so a wrong
kernel prints no number. Then all providers of a case take turns, on one thread, and what counts is
the processor time of this process: a busy machine enters only through its clock and its caches. The
closing table shows ratios of medians, slower cells too.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tabulate import tabulate

import dfpo_kernels

OURS = "dfpo"
TOLERANCE = 2e-4  # absolute and relative
# Seconds of a case's turns, and least and most turns of a provider.
BUDGET, FEWEST, MOST = 2.0, 3, 30
# A provider that takes longer than this many seconds has two turns.
SLOW = 0.8


@dataclass
class Case:
    """One op at one size."""

    op: str
    size: str
    milliseconds: dict[str, float] = field(default_factory=dict)  # medians by provider
    megabytes: dict[str, float] = field(default_factory=dict)  # peak of one call
    floors: dict[str, float] = field(default_factory=dict)  # milliseconds
    rate: str = ""


CASES: list[Case] = []
# Arm -> stage -> seconds, see bench_train_step.py.
STEPS: dict[str, dict[str, float]] = {}
# Number of threads -> median wall milliseconds of integrate_flow, see bench_threads.
THREADS: dict[int, float] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--save", action="store_true", help="write results/<machine>.json and a chart")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [f"{name}: {text}" for name, text in machine().items()]


def machine() -> dict[str, str]:
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg()) if hasattr(os, "getloadavg") else "?"
    return {
        "machine": f"{processor()}, {os.cpu_count()} CPUs, load {load}",
        "software": f"{platform.system()} {platform.release()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}",
        "kernels": f"{dfpo_kernels.backends()['integrate_flow']['cpu']}, 1 thread, float32",
    }


def processor() -> str:
    try:
        names = re.findall(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def with_peak(run: Callable[[], Any]) -> tuple[Any, float | None]:
    """A call's result, and by how many megabytes it raised the memory of the process, the result
    included; None where the system does not tell."""

    def resident(key: str) -> int:
        return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])

    try:
        # Memory that is free but still mapped would hide what the call takes.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
    except (OSError, AttributeError, TypeError):
        return run(), None
    result = run()
    return result, max(resident("VmHWM") - before, 0) / 1024


def turns(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median milliseconds of each call; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    for turn in range(MOST):
        for name, call in calls.items():
            if turn >= 2 and seconds[name][0] > SLOW:
                continue
            begin = time.process_time()
            call()
            seconds[name].append(time.process_time() - begin)
        if turn + 1 >= FEWEST and time.perf_counter() - started > BUDGET:
            break
    return {name: statistics.median(found) * 1e3 for name, found in seconds.items()}


@pytest.fixture
def steps() -> dict[str, dict[str, float]]:
    """Where bench_train_step leaves the seconds of its stages."""
    return STEPS


@pytest.fixture
def threads() -> dict[int, float]:
    """Where bench_threads leaves its times."""
    return THREADS


@pytest.fixture
def race(benchmark: Any) -> Callable:
    """race(op, size, calls, expected): checks and times ``calls``, of which "dfpo" is ours.

    floors: calls that bound ours from below, timed in turn with the others and not checked.
    moved, evaluations: bytes and silu evaluations of one call, for the rate.
    part: what of a result ``expected`` holds, where the reference is too slow for all of it.
    """

    def measure(
        op: str,
        size: str,
        calls: dict[str, Callable[[], Any]],
        expected: Any,
        *,
        floors: dict[str, Callable[[], Any]] | None = None,
        moved: int = 0,
        evaluations: int = 0,
        part: Callable[[Any], Any] = lambda result: result,
    ) -> None:
        floors = floors or {}
        case = Case(op, size)
        for name, call in calls.items():
            if name == "compile":
                call()  # compiles
            result, peak = with_peak(call)
            torch.testing.assert_close(
                part(result), expected, atol=TOLERANCE, rtol=TOLERANCE, check_dtype=False,
                msg=lambda text, name=name: f"{name} is wrong, so nothing is timed: {text}",
            )  # fmt: skip
            del result
            if peak is not None:
                case.megabytes[name] = peak
        found = turns({**calls, **floors})
        case.milliseconds = {name: found[name] for name in calls}
        case.floors = {name: found[name] for name in floors}
        seconds = found[OURS] / 1e3
        if moved:
            case.rate = f"{moved / seconds / 1e9:.1f} GB/s"
        elif evaluations:
            case.rate = f"{evaluations / seconds / 1e9:.2f} G/s"
        CASES.append(case)
        benchmark.group = f"{op} {size}"
        benchmark.extra_info |= asdict(case)
        # For pytest-benchmark's own tables, which know no turns: ours alone.
        benchmark.pedantic(calls[OURS], rounds=3)

    return measure


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    write = terminalreporter.write_line
    if STEPS:
        terminalreporter.section("a training step on the shipped policy, ms")
        write(step_table())
    if CASES:
        terminalreporter.section("time of others over ours (below 1 we lose), and peak memory")
        write(ratio_table())
        losing = [
            f"{case.op} {case.size}: {name} takes {ratio:.2f} of our time"
            for case in CASES
            for name, ratio in ratios(case).items()
            if ratio < 1
        ]
        write("We lose: " + ("; ".join(losing) if losing else "in no cell."))
    if THREADS:
        gain = THREADS[1] / THREADS[2]
        write(f"integrate_flow on two threads: {gain:.2f}x faster than on one, in wall time")
    if config.getoption("--save") and CASES:
        save(write)


def ratios(case: Case) -> dict[str, float]:
    ours = case.milliseconds[OURS]
    return {name: ms / ours for name, ms in case.milliseconds.items() if name != OURS}


def ratio_table() -> str:
    rows = []
    for case in CASES:
        ours = case.milliseconds[OURS]
        over = ", ".join(f"{name} {ratio:.3g}x" for name, ratio in ratios(case).items())
        floor = ", ".join(f"{ours / ms:.2f}x {name}" for name, ms in case.floors.items())
        memory = ", ".join(f"{name} {mb:.0f}" for name, mb in case.megabytes.items())
        rows.append([case.op, case.size, f"{ours:.2f}", case.rate, floor, over, memory])
    headers = ["op", "size", "ms", "rate", "ours over floor", "others over ours", "peak MB"]
    return tabulate(rows, headers=headers, disable_numparse=True)


def step_table() -> str:
    stages = list(next(iter(STEPS.values())))
    base = sum(next(iter(STEPS.values())).values())
    rows = []
    for arm, seconds in STEPS.items():
        total = sum(seconds.values())
        cells = [f"{s * 1e3:.0f} ({s / total:.0%})" for s in seconds.values()]
        rows.append([arm, *cells, f"{total * 1e3:.0f}", f"{total / base:.2f}x"])
    return tabulate(rows, headers=["", *stages, "step", "over PPO"], disable_numparse=True)


def save(write: Callable[[str], None]) -> None:
    from chart import draw

    slug = re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
    path = Path(__file__).parent / "results" / f"{slug}.json"
    path.parent.mkdir(exist_ok=True)
    result = {"machine": machine(), "cases": [asdict(case) for case in CASES], "steps": STEPS}
    result["integrate_flow wall ms by threads"] = THREADS
    path.write_text(json.dumps(result, indent=1) + "\n")
    picture = Path(__file__).parents[1] / "docs" / "bench.png"
    draw(result, picture)
    write(f"wrote {path} and {picture}")
