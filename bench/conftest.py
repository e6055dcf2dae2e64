"""How a number is taken: one thread, medians of several rounds, correctness before speed.

Every provider's result is compared with the float64 reference before it is timed; a wrong kernel
prints no number. The table at the end holds ratios of one run on one machine, slower cells too.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tabulate import tabulate

import dfpo_kernels

MEDIANS: dict[tuple[str, str], dict[str, float]] = {}


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def pytest_report_header(config: pytest.Config) -> list[str]:
    return [
        f"machine: {processor()}, 1 thread, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
        f"kernels: {dfpo_kernels.backends()['integrate_flow']['cpu']}",
    ]


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


@pytest.fixture
def race(benchmark: Any) -> Callable:
    """race(op, size, provider, run, expected): checks ``run()`` against ``expected``, times it."""

    def measure(
        op: str, size: str, provider: str, run: Callable[[], Any], expected: Any, rounds: int = 5
    ) -> None:
        # The first call compiles where there is something to compile.
        torch.testing.assert_close(run(), expected, atol=2e-4, rtol=2e-4, check_dtype=False)
        benchmark.group = f"{op} {size}"
        benchmark.pedantic(run, rounds=rounds, warmup_rounds=1)
        MEDIANS.setdefault((op, size), {})[provider] = benchmark.stats.stats.median

    return measure


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not MEDIANS:
        return
    peers = list(dict.fromkeys(p for row in MEDIANS.values() for p in row if p != "dfpo"))
    rows = []
    for (op, size), row in MEDIANS.items():
        if "dfpo" in row:
            ratios = [f"{row[p] / row['dfpo']:.2f}x" if p in row else "" for p in peers]
            rows.append([op, size, f"{row['dfpo'] * 1e3:.2f}", *ratios])
    terminalreporter.section("time over dfpo_kernels' time (below 1: we lose)")
    terminalreporter.write_line(tabulate(rows, headers=["op", "size", "ms", *peers]))
