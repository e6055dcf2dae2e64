"""The GPU kernels' machine code: registers, spills, instructions per silu, for four targets."""

import re
import shutil

import pytest

pytest.importorskip("triton")

from kernels import gpu_code  # noqa: E402


@pytest.fixture(scope="module")
def reports():
    return gpu_code.reports(quick=True)


def test_every_kernel_keeps_its_bounds_on_every_target(reports):
    broken = [(report, found) for report in reports if (found := gpu_code.failures(report))]
    assert not broken


def test_every_kernel_is_compiled_for_every_target(reports):
    written = set()
    for path in (gpu_code.ROOT / "dfpo_kernels").glob("*/triton_kernel.py"):
        written |= set(re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.M))
    for kernel in written:
        found = {r["target"] for r in reports if r["kernel"] == kernel and r["method"] != "rk4"}
        assert found == set(gpu_code.TARGETS), kernel
    if not shutil.which("nvcc"):
        pytest.skip("no nvcc: the CUDA kernels are not compiled")
    scans = ("GaeScan", "GaeGradScan", "MixtureScan", "MixtureGradScan")
    for kernel in (f"{how}_kernel<{scan}>" for how in ("walk", "scan") for scan in scans):
        found = {r["target"] for r in reports if r["kernel"] == kernel}
        assert found == {"sm_80", "sm_90", "sm_100"}, kernel


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
