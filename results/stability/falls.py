"""How much of what a run had learned it loses again: peak, end and fall of the clean reward.

    python results/stability/falls.py [ROWS]

prints a table over the seeds in results.jsonl beside it. The peak is that of the mean clean reward
of training answers over ``WINDOW`` steps. The best of many means is too high by chance, so the
place of the peak is chosen by the even steps and its height is the mean of the odd ones: without a
bias. The end is the last window, of the odd steps too. KL is in nats an answer, over the last
tenth.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import numpy as np
from tabulate import tabulate

from dfpo.study.statistics import paired_difference

WINDOW = 30  # steps: 1,920 answers, half of which say how high the peak is


def peak_and_end(curve: list[float]) -> tuple[float, float]:
    steps = np.asarray(curve, dtype=float)
    steps = steps[: len(steps) // 2 * 2].reshape(-1, 2)  # [pairs, even or odd]
    width = WINDOW // 2
    even, odd = (
        np.convolve(steps[:, side], np.ones(width) / width, mode="valid") for side in (0, 1)
    )
    return float(odd[even.argmax()]), float(odd[-1])


def accuracies(by_seed: dict[int, dict[str, float]]) -> dict[int, float]:
    return {seed: run["accuracy"] for seed, run in by_seed.items()}


def main(path: Path) -> None:
    runs = defaultdict(dict)
    for line in path.read_text().splitlines():
        row = json.loads(line)
        peak, end = peak_and_end(row["curve"])
        runs[row["noise"], row["arm"]][row["seed"]] = {
            "peak": peak, "end": end, "fall": peak - end, "kl": row["kl"],
            "accuracy": row["after"]["all"],
        }  # fmt: skip

    table = []
    for (noise, arm), by_seed in runs.items():
        base = runs[noise, "ppo"]
        mean = {key: fmean(run[key] for run in by_seed.values()) for key in ("peak", "end", "kl")}
        falls = [run["fall"] for run in by_seed.values()]
        gap = paired_difference(accuracies(by_seed), accuracies(base))
        above = "-"
        if arm != "ppo":
            low, high = gap.student
            above = f"{100 * gap.mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        table.append([
            noise, arm, len(by_seed), f"{mean['peak']:.3f}", f"{mean['end']:.3f}",
            ", ".join(f"{100 * fall:.1f}" for fall in falls), f"{mean['kl']:.1f}",
            f"{fmean(accuracies(by_seed).values()):.3f}", above,
        ])  # fmt: skip
    print(tabulate(table, headers=[
        "noise", "arm", "seeds", "peak", "end", "falls, points", "KL", "ALL AVG",
        "above ppo",
    ], tablefmt="github", disable_numparse=True))  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).with_name("results.jsonl"))
