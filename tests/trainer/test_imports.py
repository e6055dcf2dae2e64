"""What an import brings with it: plots are drawn seldom, and drawing is slow to load."""

import subprocess
import sys

MODULES = (
    "dfpo", "dfpo.__main__", "dfpo.run.checkpoint", "dfpo.run.train", "dfpo.study.compare",
    "dfpo.study.probe.command",
)  # fmt: skip


def test_no_matplotlib_before_something_is_drawn():
    lines = [f"import {module}; print('matplotlib' in sys.modules)" for module in MODULES]
    code = "\n".join(["import sys", *lines])
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False"] * len(MODULES)
