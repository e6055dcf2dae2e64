"""The tests marked gpu."""

from __future__ import annotations

import importlib.util
import os
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from card import keep

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    report = Path(os.environ["GPU_DAY_JSON"]).with_suffix(".xml")
    words = ["-m", "gpu", "-q", "--junitxml", str(report), "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist"):
        # Most of the time goes into compiling, on the CPU.
        words += ["-n", "4"]
    status = pytest.main([*words, str(ROOT / "tests" / "kernels" / "test_gpu.py")])
    suite = ElementTree.parse(report).getroot()[0]
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    failed = [
        f"{case.attrib['name']}: {child.attrib.get('message', '')[:200]}"
        for case in suite.iter("testcase")
        for child in case
        if child.tag in ("failure", "error")
    ]
    keep({**counts, "seconds": float(suite.attrib["time"]), "failed": failed})
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
