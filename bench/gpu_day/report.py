"""The table at the end of ``make gpu-day``: from gpu-day.json, so also made again from that file.

python bench/gpu_day/report.py gpu-day.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tabulate import tabulate


def ratio(other: float | None, own: float | None) -> str:
    return "-" if not other or not own else f"{other / own:.2f}"


def number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else "-" if value is None else "no"


def op_rows(records: list[dict]) -> list[list[str]]:
    rows = []
    for record in records:
        times = record["milliseconds"]
        own = times["ours"]
        graph = record["graph_milliseconds"]
        floor = record.get("floor_milliseconds")
        # Of the device's time: what launching costs the host is another column's.
        device = graph if isinstance(graph, (int, float)) else own
        share = "-" if not floor or not device else f"{100 * floor / device:.0f} %"
        rows.append(
            [
                record["op"], record["size"], record["dtype"], number(own), number(graph),
                ratio(times.get("eager"), own), ratio(times.get("compile"), own), share,
            ]
        )  # fmt: skip
    return rows


OP_HEADER = [
    "op", "size", "dtype", "ms", "graph, ms", "eager over ours", "compile over ours",
    "share of the floor",
]  # fmt: skip


def model_rows(records: list[dict]) -> list[list[str]]:
    return [
        [r["model"], r["arm"], r["kernels"], number(r["milliseconds"]), number(r["peak_gigabytes"])]
        for r in records
    ]


def table(results: dict[str, dict]) -> str:
    """All of it, as Markdown."""

    def show(rows, header):
        return tabulate(rows, header, tablefmt="github", disable_numparse=True)

    parts = [
        show(
            [[r["name"], r["outcome"], number(r["seconds"])] for r in results.values()],
            ["phase", "outcome", "s"],
        )
    ]
    if record := results.get("ops", {}).get("record"):
        parts.append(show(op_rows(record["records"]), OP_HEADER))
    if record := results.get("models", {}).get("record"):
        header = ["model", "arm", "kernels", "ms a step", "peak GB"]
        parts.append(show(model_rows(record["records"]), header))
    if record := results.get("demo", {}).get("record"):
        parts.append(json.dumps({k: record[k] for k in ("before", "after", "seconds")}))
    for name in ("tests", "parity"):
        if record := results.get(name, {}).get("record"):
            parts.append(f"{name}: {json.dumps(record)[:1500]}")
    if record := results.get("sweep", {}).get("record"):
        parts.append(json.dumps(record.get("best"), indent=1))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
