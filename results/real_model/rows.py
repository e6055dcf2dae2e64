"""What each run says of itself, a line of JSON a run: python results/real_model/rows.py RUN..."""

import json
import sys
from pathlib import Path

import yaml

KEPT = ("before", "after", "domains", "cpu_seconds", "peak_memory_gb")


def row(run: Path) -> dict:
    """Settings that differ between runs, and the summary's scores and costs."""
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    settings = {
        "algorithm": config["algorithm"],
        "seed": config["seed"],
        "noise": config["noise"],
        "steps": config["steps"],
        "learning_rate": config["policy"]["learning_rate"],
    }
    return settings | {name: summary[name] for name in KEPT}


if __name__ == "__main__":
    for run in map(Path, sys.argv[1:]):
        print(json.dumps(row(run)))
