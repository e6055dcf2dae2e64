"""The GPU kernels' machine code: registers, spills, instructions per silu, for four targets."""

import re
import shutil

import pytest

pytest.importorskip("triton")

from kernels import gpu_code, gpu_proof  # noqa: E402


@pytest.fixture(scope="module")
def reports():
    return gpu_code.reports()


@pytest.mark.long
def test_every_kernel_keeps_its_bounds_on_every_target(reports):
    assert reports
    assert not [(report, said) for report in reports if (said := gpu_code.failures(report))]


@pytest.mark.long
def test_every_kernel_is_compiled_for_every_target(reports):
    written = set()
    for path in (gpu_code.ROOT / "dfpo_kernels").glob("*/triton_*.py"):
        written |= set(re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.M))
    for kernel in written:
        found = {r["target"] for r in reports if r["kernel"] == kernel and r["method"] != "rk4"}
        assert found == set(gpu_code.TARGETS), kernel
    if not shutil.which("nvcc"):
        pytest.skip("no nvcc: the CUDA kernels are not compiled")
    scans = ("GaeScan", "GaeGradScan", "MixtureScan", "MixtureGradScan")
    names = [f"scan_kernel<{scan}, {path}>" for path in PATHS for scan in scans]
    names += [f"count_kernel<{scan}>" for scan in scans if "Mixture" in scan]
    for kernel in names:
        found = {r["target"] for r in reports if r["kernel"] == kernel}
        assert found == {"sm_80", "sm_90", "sm_100"}, kernel


@pytest.mark.long
def test_the_approximate_branch_takes_fewer_instructions(reports):
    for report in reports:
        if report["branch"] != "approximate":
            continue
        twin = next(
            r for r in reports
            if r["branch"] == "exact" and r.get("per_silu")
            and all(r[key] == report[key] for key in ("kernel", "method", "target"))
        )  # fmt: skip
        # At least 3 of the portable sigmoid's instructions are gone.
        assert report["per_silu"] < twin["per_silu"] - 2


def test_a_broken_bound_is_named():
    report = {"registers": 255, "stack": 8, "spills": 2, "branch": "exact", "per_silu": 27.7}
    assert len(gpu_code.failures(report)) == 4
    assert gpu_code.failures({"registers": 168, "stack": 0, "branch": "exact"}) == []


PATHS = ("direct", "direct wide", "staged", "staged wide")
KERNEL = {
    "kernel": "scan_kernel<GaeScan, direct>", "method": None, "branch": None, "target": "sm_90",
    "registers": 64, "stack": 0, "spills": 0, "shared": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("planted", "error", "said"),
    [
        ({}, 1e-7, None),
        ({"registers": 169}, 1e-7, "registers is 169, must be at most 168"),
        ({"stack": 8}, 1e-7, "stack is 8, must be at most 0"),
        ({"spills": 4}, 1e-7, "spills is 4"),
        ({"shared": 45057}, 1e-7, "shared is 45057"),
        ({}, 2e-5, "error is 2.0e-05"),
        ({}, float("nan"), "error is nan"),
        (None, 1e-7, "scan_kernel<GaeScan, direct>: was not compiled"),
    ],
)
def test_one_broken_bound_fails_the_proof(monkeypatch, capsys, planted, error, said):
    """``make gpu-proof`` ends with the status of this function."""
    reports = [] if planted is None else [{**KERNEL, "target": "sm_80"}, {**KERNEL, **planted}]
    monkeypatch.setattr(gpu_code, "reports", lambda: reports)
    monkeypatch.setattr(gpu_proof, "measure_errors", lambda: {(KERNEL["kernel"], None): error})
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert gpu_proof.main() == (0 if said is None else 1)
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("BROKEN")]
    assert len(lines) == (0 if said is None else 1)
    assert said is None or said in lines[0]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert gpu_proof.main() == 1 and "no nvcc" in capsys.readouterr().out
