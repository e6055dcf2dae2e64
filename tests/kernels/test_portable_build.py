"""The portable kernels built as on a machine without x86 and without OpenMP: by clang, and for
aarch64, whose binary runs under qemu. portable_main.cpp holds the checks."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
MAIN = Path(__file__).with_name("portable_main.cpp")


def find(names, what):
    found = next(filter(None, map(shutil.which, names)), None)
    return found or pytest.skip(f"needs {what}: none of {', '.join(names)} is on the path")


def run_checks(folder, compiler, flags=(), runner=()):
    program = folder / "portable"
    # Warnings are errors; an intrinsic or an OpenMP call of any kind would not compile or link.
    subprocess.run(
        [compiler, "-std=c++17", "-O1", "-ffp-contract=fast", "-Wall", "-Wextra", "-Werror",
         *flags, "-DDFPO_VARIANT=portable", f"-I{CSRC}", str(MAIN),
         *map(str, sorted((CSRC / "cpu").glob("*.cpp"))), "-o", str(program)],
        check=True,
    )  # fmt: skip
    checks = subprocess.run([*runner, str(program)], capture_output=True, text=True, timeout=120)
    assert checks.returncode == 0, checks.stdout + checks.stderr
    assert "portable kernels: 0 failures" in checks.stdout


def test_clang(tmp_path):
    run_checks(tmp_path, find(["clang++"], "clang"))


def test_aarch64_under_qemu(tmp_path):
    if platform.machine() in ("aarch64", "arm64"):
        return run_checks(tmp_path, find(["c++"], "a C++ compiler"))
    compiler = find(["aarch64-linux-gnu-g++"], "a compiler for aarch64")
    emulator = find(["qemu-aarch64-static", "qemu-aarch64"], "an emulator of aarch64")
    return run_checks(tmp_path, compiler, ["-static"], [emulator])
