"""Lets GPU kernels answer for CPU tensors, where there is no GPU: Triton's launchers on Triton's
interpreter, and the CUDA kernels' own text compiled for the CPU (csrc/cuda/emulation.h)."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType

import torch

from dfpo_kernels import _dispatch

CSRC = Path(__file__).parents[2] / "csrc"
TRITON_ROOMS = {
    "flow_velocity": "integrate_flow",
    "flow_velocity_backward": "integrate_flow",
    "integrate_flow": "integrate_flow",
    "integrate_flow_backward": "integrate_flow",
    "flow_consistency_loss": "flow_consistency_loss",
    "quantile_huber_loss": "quantile_huber_loss",
}
CUDA_SOURCES = ("cuda/distributional_gae.cu", "cuda/lambda_mixture_targets.cu")
BINDINGS = "bindings_cuda.cpp"


@contextlib.contextmanager
def answering(kernels: dict[str, Callable]) -> Iterator[None]:
    """The ops of these names run these functions on CPU tensors, and then their own again."""
    # Direct calls would answer on the CPU before any stand-in.
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("dfpo_kernels.") and hasattr(module, "_direct_call")
    ]
    direct = [module._direct_call for module in modules]
    for module in modules:
        module._direct_call = lambda *_: None

    library = torch.library.Library("dfpo", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for name, kernel in kernels.items():
            kernel = _dispatch.reading_numbers(name, kernel)
            library.impl(name, kernel, "CPU", allow_override=True)
    try:
        yield
    finally:
        library._destroy()
        for module, call in zip(modules, direct, strict=True):
            module._direct_call = call


@contextlib.contextmanager
def triton_answers(changed: ModuleType | None = None) -> Iterator[None]:
    """By the project's launchers, or by those of a changed copy of one of its files."""
    launchers = {}
    for name, room in TRITON_ROOMS.items():
        own = importlib.import_module(f"dfpo_kernels.{room}.triton_kernel")
        launchers[name] = getattr(changed, name, None) or getattr(own, name)
    with answering(launchers):
        yield


@contextlib.contextmanager
def cuda_answers(module: ModuleType) -> Iterator[None]:
    """By the kernels of a module built from csrc/bindings_cuda.cpp."""

    def launch(name, tensor, *args):
        getattr(module, name)(*args, 0, 0)

    gae = importlib.import_module("dfpo_kernels.distributional_gae")
    mixture = importlib.import_module("dfpo_kernels.distributional_gae.mixture")
    own = _dispatch.launch_cuda, _dispatch.CUDA_MODULE
    _dispatch.launch_cuda, _dispatch.CUDA_MODULE = launch, module
    kernels = {
        "distributional_gae": gae._cuda_kernel,
        "distributional_gae_backward": gae._backward_cuda,
        "lambda_mixture_targets": mixture._cuda_kernel,
        "lambda_mixture_targets_backward": mixture._backward_cuda,
    }
    try:
        with answering(kernels):
            yield
    finally:
        _dispatch.launch_cuda, _dispatch.CUDA_MODULE = own


# --- the emulation's compiler ---------------------------------------------------------------------


def extra_flags() -> list[str]:
    return shlex.split(os.environ.get("DFPO_EMULATION_FLAGS", ""))


def compile_object(source: Path, folder: Path, *flags: str) -> Path:
    import pybind11

    target = folder / f"{source.stem}.o"
    includes = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
    subprocess.run(
        [shutil.which("c++"), "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror",
         *flags, *extra_flags(), "-DDFPO_VARIANT=emulated", *includes,
         "-x", "c++", "-c", str(source), "-o", str(target)],
        check=True,
    )  # fmt: skip
    return target


def compile_emulation(folder: Path, *flags: str) -> dict[str, Path]:
    """Object files by their source."""
    objects = {name: compile_object(CSRC / name, folder, "-O1", *flags) for name in CUDA_SOURCES}
    return objects | {BINDINGS: compile_object(CSRC / BINDINGS, folder, "-O0")}


def load(objects: Iterable[Path], folder: Path) -> ModuleType:
    library = folder / "_cuda.so"
    command = [shutil.which("c++"), "-shared", *extra_flags(), *map(str, objects)]
    subprocess.run([*command, "-o", str(library)], check=True)
    # pybind11 returns the module that it knows by a name, whatever the file.
    spec = importlib.util.spec_from_file_location(f"{folder.name}._cuda", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
