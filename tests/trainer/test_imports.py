"""What an import brings with it: plots are drawn seldom, and drawing is slow to load."""

import subprocess
import sys

import pytest

MODULES = (
    "dfpo", "dfpo.__main__", "dfpo.run.checkpoint", "dfpo.run.train", "dfpo.study.compare",
    "dfpo.study.probe.command",
)  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_no_matplotlib_before_something_is_drawn(module):
    code = f"import sys, {module}; print('matplotlib' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"
