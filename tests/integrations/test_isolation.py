"""Trainers pin versions that exclude each other, so nothing here imports one unasked."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ADAPTERS = sorted(
    path for path in (ROOT / "dfpo/integrations").glob("*.py") if path.stem != "__init__"
)
# Prints, a line for each module, the trainers imported once it is: all of dfpo, the adapters, and
# at last those of trl and torchrl, which subclass their trainer's classes, where it is installed.
IMPORTS = """
import importlib, importlib.util, pkgutil, sys
import dfpo, dfpo_kernels
TRAINERS = {"trl", "verl", "openrlhf", "nemo_rl", "slime", "torchrl", "tensordict", "megatron",
            "skyrl"}

def imported(name):
    importlib.import_module(name)
    print(name, *sorted({module.split(".")[0] for module in sys.modules} & TRAINERS))

for package in (dfpo, dfpo_kernels):
    for _, name, _ in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        # Without a command, and without Triton's kernels, which need Triton.
        if ".integrations" not in name and not name.endswith(("__main__", "triton_kernel")):
            imported(name)
for adapter in sys.argv[1:]:
    if adapter not in ("trl", "torchrl") or importlib.util.find_spec(adapter):
        imported("dfpo.integrations." + adapter)
"""


def test_no_trainer_is_imported_unasked():
    pytest.importorskip("transformers", reason="dfpo's own trainer needs transformers")
    adapters = sorted((path.stem for path in ADAPTERS), key=lambda name: name in ("trl", "torchrl"))
    command = [sys.executable, "-c", IMPORTS, *adapters]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    found = {name: trainers for name, *trainers in map(str.split, run.stdout.splitlines())}
    asked = {name: found.pop(f"dfpo.integrations.{name}", None) for name in ("torchrl", "trl")}
    assert {"dfpo.run.train", "dfpo_kernels.nn", "dfpo.integrations.slime"} <= found.keys()
    assert not any(found.values()), found
    # Those of trl and torchrl come last and bring no other.
    assert asked["torchrl"] in (None, ["tensordict", "torchrl"])
    assert set(asked["trl"] or ()) <= {"trl", *(asked["torchrl"] or ())}


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_an_adapter_is_short(path):
    written = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(written) <= 200
