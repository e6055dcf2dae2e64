"""Cells as tasks of a Ray cluster: as many at a time as it has cores, or GPUs, for.

A task trains its cell in a process of its own, as the local pool does, and is tried again where its
node dies. Where a node sees the comparison's directory, the cell works in it and goes on from its
checkpoint; elsewhere it works in a folder of the node's, and what the tables and plots read is sent
back.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfpo.config import ConfigError, build_config
from dfpo.run.stop import Stopped
from dfpo.study.cell import settings_file, train_cell, write_settings
from dfpo.study.recipe import Cell
from dfpo.study.workers import (
    REFRESH,
    Work,
    add_time,
    begin_work,
    last_words,
    listen,
    server,
    steps_done,
)

RETRIES = 3  # of a cell whose node has died
ADDRESS = re.compile(r"ray|ray://.+|[^/\s]+:\d+")
# What is left of a run that was trained out of the driver's sight.
KEPT = ("config.yaml", "metrics.jsonl", "summary.json")


@dataclasses.dataclass(frozen=True)
class Order:
    """What a task is told."""

    cell: Cell  # its directory as the driver sees it
    folder: Path  # where the driver works: relative paths of a recipe begin there
    mark: Path  # a file that a node sees if it sees the comparison's directory


@dataclasses.dataclass(frozen=True)
class Ended:
    """What comes back from a task."""

    status: int
    said: str  # last words of a cell that failed
    files: dict[str, bytes]  # beside the run, or within it; empty where the driver sees them


def is_address(where: str) -> bool:
    return ADDRESS.fullmatch(where) is not None


def check_ray(where: str) -> None:
    """Raises ConfigError where the words name no cluster, or where Ray is missing."""
    if not is_address(where):
        raise ConfigError(
            f"on: is {where}, must be local, ray, ray://HOST:PORT or the HOST:PORT of a Ray cluster"
        )
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("on: needs Ray, which is not installed: pip install 'dfpo[ray]'")


def run_on_ray(
    cells: list[Cell],
    jobs: int | None,
    proceed: str,
    show: Callable[[Work, Cell | None], None],
    *,
    where: str,
) -> dict[Cell, str]:
    """``dfpo.study.workers.run_cells`` on a cluster; ``jobs`` is the most cells at a time."""
    with cluster(where) as ray, marked(cells) as mark, listen() as received:
        work, told = begin_work(cells, 1), 0
        while work.running or (work.waiting and not received):
            work.jobs = jobs or slots(ray, cells)
            while work.waiting and len(work.running) < work.jobs and not received:
                cell = work.waiting.popleft()
                work.started[cell] = (time.monotonic(), steps_done(cell))
                work.running[submit(ray, Order(absolute(cell), Path.cwd(), mark))] = cell
            ended, _ = ray.wait(list(work.running), timeout=REFRESH)
            for task in ended:
                cell = work.running.pop(task)
                settle(work, cell, outcome(ray, task), bool(received))
                show(work, cell)
            show(work, None)
            if len(received) > told:
                for task in work.running:
                    ray.cancel(task, force=told > 0)
                if work.running and not told:
                    print(f"\n{len(work.running)} cells finish their step; once more to stop now")
                told = len(received)
        if received:
            raise Stopped(received[0], None, proceed)

    return work.failed


@contextmanager
def cluster(where: str) -> Iterator[Any]:
    """Ray, connected: to the cluster of that address, or with "ray" to that of RAY_ADDRESS, else to
    one of this machine's cores. A connection that was there is left as it was."""
    check_ray(where)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    address = {} if where == "ray" else {"address": where}
    try:
        ray.init(**address, log_to_driver=False, logging_level="ERROR")
    # Nobody answers, another version answers, a wrong word: in Ray's words.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"on: cannot reach {where}: {reason}") from None

    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def marked(cells: list[Cell]) -> Iterator[Path]:
    """A file beside the cells whose name no other directory has."""
    folder = cells[0].run.parent.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / f".seen-{uuid.uuid4().hex}"
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def absolute(cell: Cell) -> Cell:
    return dataclasses.replace(cell, run=cell.run.absolute())


def needs(ray: Any, cell: Cell) -> dict[str, int]:
    """Cores and GPUs of a task: its threads, and a GPU where the cluster has some and the cell may
    take one."""
    config = build_config(cell.settings)
    gpus = config.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
    return {"num_cpus": max(1, config.threads), "num_gpus": int(gpus)}


def slots(ray: Any, cells: list[Cell]) -> int:
    """Cells that the cluster has room for now; nodes come and go."""
    there, wanted = ray.cluster_resources(), needs(ray, cells[0])
    room = [int(there.get("CPU", 0)) // wanted["num_cpus"]]
    if wanted["num_gpus"]:
        room.append(int(there["GPU"]))
    return max(1, min(room))


def submit(ray: Any, order: Order) -> Any:  # ray.ObjectRef
    resources = needs(ray, order.cell)
    return ray.remote(carry_out).options(max_retries=RETRIES, **resources).remote(order)


def carry_out(order: Order) -> Ended:
    """On a node: trains the cell, in the comparison's directory or in one of the node's own."""
    if order.folder.is_dir():
        os.chdir(order.folder)
    if order.mark.exists():
        return train(order.cell)
    with tempfile.TemporaryDirectory() as own:
        cell = dataclasses.replace(order.cell, run=Path(own) / order.cell.run.name)
        write_settings(cell)
        ended = train(cell)
        return dataclasses.replace(ended, files=left_of(cell))


def train(cell: Cell) -> Ended:
    """The cell in a process of its own, which ends with this one; one that is called off writes its
    checkpoint."""
    process = server().Process(target=train_cell, args=(cell,), daemon=True)
    process.start()
    try:
        with interruptible():
            while process.is_alive():
                process.join(REFRESH)
    except KeyboardInterrupt:  # Ray's way to call a task off
        process.terminate()
        process.join()

    status = process.exitcode
    return Ended(status, "" if status == 0 else last_words(cell, status), {})


@contextmanager
def interruptible() -> Iterator[None]:
    """An interrupt is raised inside: Ray's processes may have inherited that they ignore it, as all
    do that a shell starts in the background."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def left_of(cell: Cell) -> dict[str, bytes]:
    """The files of a run that tables and plots read, by their place beside it."""
    beside = [cell.run.with_suffix(".log"), settings_file(cell), cell.result]
    paths = [*(cell.run / name for name in KEPT), *beside]
    folder = cell.run.parent
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.exists()}


def outcome(ray: Any, task: Any) -> Ended:
    """What came of a task; one that Ray gave up has Ray's words."""
    try:
        return ray.get(task)
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Ended(1, f"Ray gave it up: {lines[0][:300]}", {})


def settle(work: Work, cell: Cell, ended: Ended, stopping: bool) -> None:
    """Puts the files of a cell in their place, the result last: it says that the cell is done."""
    result = cell.result.name
    for name in sorted(ended.files, key=lambda name: name == result):
        path = cell.run.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(ended.files[name])

    started, first = work.started[cell]
    if ended.status == 0:
        add_time(work, cell, time.monotonic() - started, steps_done(cell) - first)
    elif not stopping:
        work.failed[cell] = ended.said
