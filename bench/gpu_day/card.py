"""What the phases share: the device, its clock, and small stand-ins for a machine without a GPU.

With DRY=1 everything runs on the CPU in small sizes: wall time stands in for events, a plain call
for the replay of a graph. So a missing import or a wrong argument shows before a GPU is there.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

DRY = os.environ.get("DRY", "0") not in ("", "0")
DEVICE = "cpu" if DRY else "cuda"
# Written over between two timed calls, so that no input is left in the second level cache: 50 MB
# on an H100, 60 MB on an H200, 126 MB on a B200.
FLUSH_BYTES = 2**16 if DRY else 2**29
ROUNDS = 2 if DRY else 20
# For the rounds of one measurement.
MOST_SECONDS = 0.5


def keep(record: object) -> None:
    """Writes what the phase has measured so far: a phase that is stopped keeps its rows."""
    path = Path(os.environ["GPU_DAY_JSON"])
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)


def synchronize() -> None:
    if not DRY:
        torch.cuda.synchronize()


_flush: list[torch.Tensor] = []


def flush_cache() -> None:
    if not _flush:
        _flush.append(torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=DEVICE))
    _flush[0].zero_()


def milliseconds(run: Callable[[], object], rounds: int = ROUNDS) -> float | None:
    """Median time of a call from cold caches, by events; None where it does not fit in memory.
    A slow call gets fewer rounds, so that it takes about MOST_SECONDS; 1 is enough for it."""
    try:
        run()  # compiles
        slow = _wall_milliseconds(run, 1) / 1e3
        rounds = max(1, min(rounds, int(MOST_SECONDS / slow)))
        return _wall_milliseconds(run, rounds) if DRY else _event_milliseconds(run, rounds)
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def _event_milliseconds(run: Callable[[], object], rounds: int) -> float:
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for start, end in pairs:
        flush_cache()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs)


def graph_milliseconds(run: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The same by replays of a captured graph, which leaves out what launching costs the host.
    Raises RuntimeError where the call cannot be captured: it waits for the device."""
    if DRY:
        return _wall_milliseconds(run, rounds)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return milliseconds(graph.replay, rounds)


def _wall_milliseconds(run: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        synchronize()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def peak_gigabytes(run: Callable[[], object]) -> float | None:
    """Most memory that was allocated while run() ran, everything resident included."""
    if DRY:
        run()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e9
