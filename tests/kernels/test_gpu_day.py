"""``make gpu-day`` on a CPU, in small sizes, from the tree as it is carried to a GPU."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
# Those that take less than half a minute; ``make gpu-day DRY=1`` runs them all, in two minutes.
PHASES = ["parity", "memcheck", "environment", "ops", "models", "sweep"]


@pytest.fixture(scope="module")
def carried(tmp_path_factory):
    """The packed tree, unpacked, with the modules that its build phase would make there."""
    folder = tmp_path_factory.mktemp("carried")
    subprocess.run(
        [sys.executable, "bench/gpu_day/pack.py", folder / "tree.tar.gz"], cwd=ROOT, check=True
    )
    with tarfile.open(folder / "tree.tar.gz") as archive:
        names = archive.getnames()
        archive.extractall(folder / "tree", filter="data")
    assert "csrc/cuda/scan.h" in names and "bench/gpu_day/__main__.py" in names
    assert not any(name.startswith((".venv", "build", "runs")) for name in names)
    for module in (ROOT / "dfpo_kernels").glob("*.so"):
        shutil.copy(module, folder / "tree" / "dfpo_kernels")
    return folder / "tree"


def run(tree, *phases):
    command = [sys.executable, "bench/gpu_day", "--out", "found", *phases]
    environment = os.environ | {"DRY": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)


def test_a_phase_runs_and_keeps_what_it_measures(carried):
    done = run(carried, "environment")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (result,) = json.loads((carried / "found" / "gpu-day.json").read_text()).values()
    assert result["outcome"] == "passed" and result["record"]


@pytest.mark.long
def test_every_phase_runs_and_keeps_what_it_measures(carried):
    done = run(carried, *PHASES)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((carried / "found" / "gpu-day.json").read_text())
    assert {name: r["outcome"] for name, r in results.items()} == dict.fromkeys(PHASES, "passed")
    ops = {record["op"] for record in results["ops"]["record"]["records"]}
    assert {"distributional_gae", "integrate_flow forward+backward"} <= ops
    assert results["models"]["record"]["records"][0]["milliseconds"] > 0
    assert set(results["sweep"]["record"]["best"]) == {"forward", "adjoint", "coefficients"}


def test_the_phases_fit_one_call_and_each_set_another():
    day = runpy.run_path(str(ROOT / "bench" / "gpu_day" / "__main__.py"), run_name="gpu_day")
    for names in ([phase.name for phase in day["PHASES"]], *day["SETS"].values()):
        together = day["groups"](names)
        assert sum(map(len, together)) == len(names)
        seconds = sum(max(phase.limit for phase in group) for group in together)
        assert seconds <= day["TOTAL_SECONDS"]


def test_an_unknown_phase_is_named(carried):
    done = run(carried, "opps")
    assert done.returncode == 2 and "opps: no such phase, must be of checks, times" in done.stderr
