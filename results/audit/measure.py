"""How well ``dfpo audit`` sees errors that are known: injected noise, seeds of nothing else.

    python results/audit/measure.py [SEED...]

trains what is not yet in audit.jsonl beside it, by default on all seeds, and prints a table. Every
run has a policy that stands still, 200 updates of the critic and one pass over each; then 1024
fresh answers are audited. The truth is what noise did to those same answers.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

import dfpo
from dfpo.study.audit.estimates import Interval, robust_deviation

RECORDS = Path(__file__).parent / "audit.jsonl"
SEEDS = (430, 431, 432, 433, 434)
NOISES = {
    "flip": "flip=0.2",
    "none": "none",
    "heavy": "heavy=1",
    "by-domain": "math:normal=0.1;science:normal=0.5;dialogue:normal=3",
}
# Controls, on the first seeds alone: a critic of one number; of rewards in dfpo's space too where
# the space can matter.
CONTROLS = {"flip": ("ppo",), "heavy": ("ppo",), "by-domain": ("ppo", "ppo-cdf"), "none": ()}
CONTROL_SEEDS = SEEDS[:3]
UPDATES, FRESH = 200, 1024


def measure(arm: str, noise: str, seed: int) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp())
    run = dfpo.train(
        algorithm=arm, noise=NOISES[noise], seed=seed, steps=UPDATES,
        critic={"warmup_steps": UPDATES, "warmup_epochs": 1},
        eval={"prompts": 0, "examples": 0}, plots=False, answers_every=0, threads=1,
        runs_dir=str(folder), name="run",
    )  # fmt: skip
    audit = dfpo.audit(run, answers=FRESH)
    table = audit.answers.to_pandas()
    clean = table["clean"] if "clean" in table else table["told"]
    error = (table["told"] - clean).to_numpy()
    record = {"arm": arm, "noise": noise, "seed": seed, "found": audit.known_errors, "groups": {}}
    for name, report in audit.groups.items():
        rows = np.full(len(table), True) if name == "all" else (table["group"] == name).to_numpy()
        record["groups"][name] = {
            "wrong": float((error[rows] != 0).mean()), "flips": said(report.flips),
            "deviation": robust_deviation(error[rows]), "spread": said(report.spread),
            "skill": said(report.skill),
        }  # fmt: skip
    shutil.rmtree(folder)
    return record


def said(interval: Interval) -> Interval | None:
    """None, as JSON says it, for what the audit does not say."""
    return None if np.isnan(interval[0]) else interval


def rows_of(records: list[dict[str, Any]]) -> list[list[str]]:
    """A row for each run and, of noises that differ by domain, each domain."""
    rows = []
    for record in records:
        for name, group in record["groups"].items():
            if (name == "all") == (record["noise"] == "by-domain"):
                continue
            labels = record["noise"] in ("flip", "none")
            true, estimate = (
                (group["wrong"], group["flips"])
                if labels
                else (group["deviation"], group["spread"])
            )
            area = (record["found"] or {}).get("surprise")
            rows.append([
                record["noise"], record["arm"], record["seed"], name, f"{true:.3f}",
                "{:.3f} [{:.3f}, {:.3f}]".format(*estimate) if estimate else "unknown",
                "" if area is None else f"{area:.3f}",
            ])  # fmt: skip
    return rows


if __name__ == "__main__":
    done = [json.loads(line) for line in RECORDS.open()] if RECORDS.exists() else []
    known = {(r["arm"], r["noise"], r["seed"]) for r in done}
    for seed in map(int, sys.argv[1:]) if sys.argv[1:] else SEEDS:
        for noise in NOISES:
            controls = CONTROLS[noise] if seed in CONTROL_SEEDS else ()
            for arm in ("dfpo", *controls):
                if (arm, noise, seed) in known:
                    continue
                done.append(measure(arm, noise, seed))
                with RECORDS.open("a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
    headers = ["noise", "critic", "seed", "group", "true", "estimated", "AUC"]
    print(tabulate(rows_of(done), headers, tablefmt="pipe", disable_numparse=True))
