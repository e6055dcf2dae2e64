"""A step of DFPO beside a step of PPO with a scalar critic, on the same rollout, stage by stage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from train_step import ARMS, measure


def bench_train_step(benchmark, steps):
    child = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("train_step.py")), "dfpo Q64", "--rounds=6"],
        env={**os.environ, "DFPO_KERNELS": "reference"}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    steps.update(benchmark.pedantic(measure, args=(list(ARMS), 4), rounds=1))
    steps["dfpo Q64, DFPO_KERNELS=reference"] = json.loads(child.stdout)["dfpo Q64"]
