"""Builds the native kernels with CMake; all metadata is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """One CMake build gives every native module of dfpo_kernels (the CUDA one if nvcc is there)."""

    def run(self) -> None:
        in_place = self.inplace or getattr(self, "editable_mode", False)
        destination = (ROOT if in_place else Path(self.build_lib).resolve()) / "dfpo_kernels"
        ninja = shutil.which("ninja")
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-{'ninja' if ninja else 'make'}"
        # Paths of build tools are given anew each time: under build isolation the ones in the
        # cache point into an environment that is gone.
        configure = [
            "cmake", "-S", str(ROOT), "-B", str(build),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DDFPO_CUDA={os.environ.get('DFPO_CUDA', '1')}",
        ]  # fmt: skip
        if ninja:
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        subprocess.run(configure, check=True)
        # A number, since make without one starts every compiler at once.
        jobs = str(os.cpu_count())
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)
        # A module of an earlier build that this one leaves out would still be imported.
        for stale in destination.glob("_*.so"):
            stale.unlink()
        subprocess.run(["cmake", "--install", str(build), "--prefix", str(destination)], check=True)

    def get_outputs(self) -> list[str]:
        return [str(path) for path in Path(self.build_lib, "dfpo_kernels").glob("_*.so")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(ext_modules=[Extension("dfpo_kernels._cpu", [])], cmdclass={"build_ext": CMakeBuild})
