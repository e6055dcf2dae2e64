"""What this installation is: versions, backends, device."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch
from tabulate import tabulate

import dfpo_kernels

PACKAGES = ("dfpo", "torch", "transformers", "accelerate", "triton", "numpy")


def collect_info() -> dict[str, Any]:
    """Versions (None where a package is not installed), the backend of every op, the device."""
    cuda = torch.cuda.is_available()
    return {
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "backends": dfpo_kernels.backends(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu_threads": torch.get_num_threads(),
    }


def describe_info(info: dict[str, Any]) -> str:
    lines = [(name, version or "not installed") for name, version in info["versions"].items()]
    lines += [(key.replace("_", " "), info[key]) for key in ("machine", "device", "cpu_threads")]
    ops = [(op, *answers.values()) for op, answers in info["backends"].items()]
    devices = next(iter(info["backends"].values()))
    return (
        tabulate(lines, tablefmt="plain", disable_numparse=True)
        + "\n\n"
        + tabulate(ops, headers=["op", *(f"on {device}" for device in devices)])
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
