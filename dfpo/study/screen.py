"""What a comparison shows while it works: a line per finished cell, and on a terminal a table."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from statistics import fmean
from typing import Any

from tabulate import tabulate

from dfpo.study.recipe import Cell
from dfpo.study.workers import Work, seconds_left, steps_done


def make_board() -> Callable[[Work, Cell | None], None]:
    """A function to call about once a second, and with every cell that ends."""
    drawn = 0  # lines of the table that stand above the cursor

    def show(work: Work, ended: Cell | None) -> None:
        nonlocal drawn
        live = sys.stdout.isatty()
        if not live and ended is None:
            return
        if drawn:
            print(f"\x1b[{drawn}A\x1b[J", end="")
            drawn = 0
        if ended is not None:
            print(ending(work, ended), flush=True)

        if live:
            # A line that wraps, or one above the window, could not be drawn over.
            width, height = shutil.get_terminal_size()
            lines = [line[: width - 1] for line in progress_table(work, height - 2).split("\n")]
            print("\n".join(lines), flush=True)
            drawn = len(lines)

    return show


def ending(work: Work, cell: Cell) -> str:
    """One cell, what came of it, and how long the rest takes."""
    done = sum(c.result.exists() for c in work.cells)
    if cell in work.failed:
        outcome = f"failed: {work.failed[cell]}"
    elif not cell.result.exists():
        outcome = f"stopped after {steps_done(cell)} of {cell.steps} steps"
    else:
        result = json.loads(cell.result.read_text(encoding="utf-8"))
        outcome = ", ".join([*score_words(result), f"{result['cost']['cpu_seconds']:.0f} CPU-s"])

    return f"[{done}/{len(work.cells)}] {cell.label}: {outcome}; {remaining(work)}"


def score_words(result: dict[str, Any]) -> list[str]:
    """The headline of a result."""
    shown = [
        f"{k} {three_decimals(v)}" for k, v in result["after"].items() if not k.endswith("_greedy")
    ]
    if "validation" in result:
        shown.append(f"noisy validation {three_decimals(result['validation']['noisy'])}")
    if result["collapsed"]:
        shown.append("collapsed")
    return shown


def three_decimals(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def remaining(work: Work) -> str:
    left = seconds_left(work)
    if left is None:
        return "time left unknown"
    return f"{left / 60:.0f} min left" if left > 90 else f"{left:.0f} s left"


def mean(values: list[float | None]) -> str:
    if not values:
        return ""
    return three_decimals(None if None in values else fmean(values))


def progress_table(work: Work, height: int = 1000) -> str:
    """Every arm under every noise: cells done, what runs, means so far. Where that is more than
    ``height`` lines, the arms that run."""
    results = {
        cell: json.loads(cell.result.read_text(encoding="utf-8"))
        for cell in work.cells
        if cell.result.exists()
    }
    rows = []

    for key in dict.fromkeys((c.domain, c.noise, c.arm) for c in work.cells):
        cells = [c for c in work.cells if (c.domain, c.noise, c.arm) == key]
        known = [results[c]["after"] for c in cells if c in results]
        means = [mean([a[group] for a in known if group in a]) for group in ("id", "ood")]
        busy = [
            f"seed {c.seed}: {steps_done(c)}/{c.steps}" for c in work.running.values() if c in cells
        ]
        rows.append([*key, f"{len(known)}/{len(cells)}", *means, ", ".join(busy)])

    if len(rows) + 3 > height:
        rows = [row for row in rows if row[-1]][: max(0, height - 3)]
    headers = ["domain", "noise", "arm", "done", "ID AVG", "OOD AVG", "running"]
    clock = time.strftime("%H:%M:%S")
    total = f"{len(results)} of {len(work.cells)} cells, {remaining(work)}, {clock}"

    return f"{tabulate(rows, headers=headers, disable_numparse=True)}\n{total}"
