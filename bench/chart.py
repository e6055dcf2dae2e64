"""The picture of a result: python bench/chart.py bench/results/<machine>.json docs/bench.png"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(result: dict, path: Path) -> None:
    """Bars: how many times longer others take than ours, case by case, on a logarithmic axis."""
    bars = [
        (f"{case['op']}  {case['size']}", name, ms / case["milliseconds"]["dfpo"])
        for case in result["cases"]
        for name, ms in case["milliseconds"].items()
        if name != "dfpo"
    ]
    names = list(dict.fromkeys(name for _, name, _ in bars))
    labels = [label for label, _, _ in bars]
    # One label for the bars of a case.
    labels = [x if x not in labels[:i] else "" for i, x in enumerate(labels)]
    figure, axes = plt.subplots(figsize=(9, 0.24 * len(bars) + 1.2), layout="constrained")
    for i, (_, name, ratio) in enumerate(bars):
        axes.barh(i, ratio - 1, left=1, color=f"C{names.index(name)}")
        axes.annotate(
            f"{name} {ratio:.3g}x", (max(ratio, 1), i), xytext=(3, 0),
            textcoords="offset points", va="center", fontsize=7,
        )  # fmt: skip
    axes.set_yticks(range(len(bars)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.5, max(ratio for _, _, ratio in bars) * 4)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel(
        "time over dfpo_kernels' time, one thread (left of the line we lose)", fontsize=8
    )
    axes.set_title(result["machine"]["machine"], fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
