"""Builds the native modules where they stand, the CUDA part for the card here alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from card import DRY, keep

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    environment = dict(os.environ)
    if DRY:
        environment["DFPO_CUDA"] = "0"
    else:
        major, minor = torch.cuda.get_device_capability()
        environment["DFPO_CUDA_ARCHITECTURES"] = f"{major}{minor}-real"
    started = time.monotonic()
    # What is here was built for another Python, or not at all; and nothing is installed, so that
    # dfpo reads its version from the metadata that egg_info leaves beside it.
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "build_ext", "--inplace"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    seconds = time.monotonic() - started
    show = "import dfpo_kernels; print(dfpo_kernels.backends())"
    backends = subprocess.run(
        [sys.executable, "-c", show], cwd=ROOT, env=environment, check=True, capture_output=True,
        text=True,
    ).stdout.strip()  # fmt: skip
    print(backends)
    if not DRY and "'cuda': 'reference'" in backends:
        raise SystemExit("an op has no kernel for CUDA")
    keep({"seconds": seconds, "backends": backends})


if __name__ == "__main__":
    main()
