"""The machine, and the two ceilings that every other number is compared with: bytes a second of a
large copy, units of the field a second with everything in registers."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess

import torch
from card import DEVICE, DRY, keep, milliseconds
from silu_rate import silu_rates

PACKAGES = [
    "torch", "triton", "transformers", "accelerate", "peft", "safetensors", "pyarrow", "numpy",
    "matplotlib", "tabulate", "tqdm", "pyyaml", "pytest", "pytest-benchmark", "pybind11", "cmake",
    "ninja",
]  # fmt: skip
TOOLS = ["nvcc", "cmake", "ninja", "c++", "compute-sanitizer", "ncu", "cuobjdump", "nvidia-smi"]


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def copy_rate() -> float:  # bytes a second, read and written
    source = torch.empty(2**16 if DRY else 2**32, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    source.random_(0, 255)
    return 2e3 * source.numel() / milliseconds(lambda: target.copy_(source))


def matmul_rate() -> float:  # FLOP a second
    size = 64 if DRY else 8192
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2e3 * size**3 / milliseconds(lambda: a @ b)


def main() -> None:
    record = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cuda": torch.version.cuda,
        "packages": {name: version_of(name) for name in PACKAGES},
        "tools": {name: shutil.which(name) for name in TOOLS},
        "gpu": None if DRY else torch.cuda.get_device_name(),
    }
    if not DRY:
        properties = torch.cuda.get_device_properties(0)
        record |= {
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
        }
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm,power.limit"]
        shown = subprocess.run([*query, "--format=csv"], capture_output=True, text=True)
        record["nvidia-smi"] = shown.stdout.strip()
    keep(record)
    record["copy_bytes_per_second"] = copy_rate()
    record["bf16_matmul_flops"] = matmul_rate()
    keep(record)
    record["silu_per_second"] = silu_rates()
    keep(record)
    for name, value in record.items():
        print(name, value)


if __name__ == "__main__":
    main()
