"""The demo on the device: accuracy before and after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from card import DEVICE, DRY, keep

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--steps", "1", "--eval.prompts", "4", "--rollout.prompts", "2"] if DRY else []


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "dfpo", "train", "--device", DEVICE, "--runs-dir", folder]
        subprocess.run([*command, "--name", "demo", *SHORT], cwd=ROOT, env=os.environ, check=True)
        summary = json.loads((Path(folder) / "demo" / "summary.json").read_text())
    kept = ("before", "after", "seconds", "training")
    keep({name: summary[name] for name in kept})


if __name__ == "__main__":
    main()
