"""Cells in parallel processes: as many as there are cores, each on one thread.

A server process imports the trainer once; every cell is a fork of it (multiprocessing's
"forkserver"), so a cell costs no start-up, and one that is killed takes nothing with it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import forkserver
from multiprocessing.connection import wait
from typing import Any

from dfpo.run.stop import SIGNALS, Stopped
from dfpo.study.cell import train_cell
from dfpo.study.recipe import Cell

REFRESH = 1.0  # seconds between looks at running cells
LAST_LINES = 3


@dataclass
class Work:
    """Where a comparison is; the board is drawn from it."""

    cells: list[Cell]
    jobs: int
    waiting: deque[Cell] = field(default_factory=deque)
    running: dict[Any, Cell] = field(default_factory=dict)  # by process, or by task of a cluster
    started: dict[Cell, tuple[float, int]] = field(default_factory=dict)  # when, after which step
    seconds: dict[str, float] = field(default_factory=dict)  # arm -> seconds in finished cells
    steps: dict[str, int] = field(default_factory=dict)  # arm -> steps in those seconds
    failed: dict[Cell, str] = field(default_factory=dict)  # its last words


def run_cells(
    cells: list[Cell], jobs: int, proceed: str, show: Callable[[Work, Cell | None], None]
) -> dict[Cell, str]:
    """Trains the cells that have no result; returns those that failed, with their last words.

    ``show`` is called about once a second, and with each cell that ends. Raises Stopped, saying
    ``proceed``, once all cells have written their checkpoints after Ctrl-C or SIGTERM.
    """
    work = begin_work(cells, jobs)
    context = server()
    with listen() as received:
        told = 0
        while work.running or (work.waiting and not received):
            while work.waiting and len(work.running) < jobs and not received:
                cell = work.waiting.popleft()
                process = context.Process(target=train_cell, args=(cell,), daemon=True)
                work.started[cell] = (time.monotonic(), steps_done(cell))
                process.start()
                work.running[process] = cell
            wait([process.sentinel for process in work.running], timeout=REFRESH)
            for process in [p for p in work.running if not p.is_alive()]:
                cell = work.running.pop(process)
                _settle(work, cell, process.exitcode, bool(received))
                show(work, cell)
            show(work, None)
            if len(received) > told:
                for process in work.running:
                    process.kill() if told else process.terminate()
                if work.running and not told:
                    print(f"\n{len(work.running)} cells finish their step; once more to stop now")
                told = len(received)
        if received:
            raise Stopped(received[0], None, proceed)

    return work.failed


def begin_work(cells: list[Cell], jobs: int) -> Work:
    """The cells that have no result wait; what the others cost is counted."""
    work = Work(cells, jobs, deque(cell for cell in cells if not cell.result.exists()))
    for cell in cells:
        if cell.result.exists():
            made = json.loads(cell.result.read_text(encoding="utf-8"))
            add_time(work, cell, made["cost"]["seconds"], cell.steps)
    return work


def server() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    # pyarrow imports pandas, where it is installed, with the first table that it writes.
    context.set_forkserver_preload(["dfpo.study.cell", "dfpo.run.train", "pandas"])
    before = dict(os.environ)
    # Read by libraries as the server imports them: cells have one core each, and a log.
    os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    forkserver.ensure_running()
    os.environ.clear()
    os.environ |= before

    return context


@contextmanager
def listen() -> Iterator[list[int]]:
    """Signals that ask to stop, as they come."""
    received: list[int] = []
    before = {n: signal.signal(n, lambda signum, _: received.append(signum)) for n in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _settle(work: Work, cell: Cell, status: int, stopping: bool) -> None:
    started, first = work.started[cell]
    if status == 0:
        add_time(work, cell, time.monotonic() - started, steps_done(cell) - first)
    elif not stopping:
        work.failed[cell] = last_words(cell, status)


def add_time(work: Work, cell: Cell, seconds: float, steps: int) -> None:
    work.seconds[cell.arm] = work.seconds.get(cell.arm, 0.0) + seconds
    work.steps[cell.arm] = work.steps.get(cell.arm, 0) + steps


def last_words(cell: Cell, status: int) -> str:
    path = cell.run.with_suffix(".log")
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
    said = [line for line in lines if line.strip()][-LAST_LINES:]
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return "\n".join([f"exit status {status}, {path} ends", *said])


def steps_done(cell: Cell) -> int:
    """Steps in the cell's metrics."""
    try:
        return (cell.run / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def seconds_left(work: Work) -> float | None:
    """Time until all cells are done, from what a step of each arm has cost so far, evaluations
    included; None before anything is known."""
    now = time.monotonic()
    seconds, steps = dict(work.seconds), dict(work.steps)
    for cell in work.running.values():
        started, first = work.started[cell]
        if cell.arm not in work.steps and steps_done(cell) > first:
            seconds[cell.arm] = seconds.get(cell.arm, 0.0) + now - started
            steps[cell.arm] = steps.get(cell.arm, 0) + steps_done(cell) - first

    if not sum(steps.values()):
        return None
    common = sum(seconds.values()) / sum(steps.values())

    def left(cell: Cell) -> float:
        rate = seconds[cell.arm] / steps[cell.arm] if steps.get(cell.arm) else common
        return rate * max(0, cell.steps - steps_done(cell))

    running = [left(cell) for cell in work.running.values()]
    total = sum(running) + sum(map(left, work.waiting))
    return max([total / work.jobs, *running])
