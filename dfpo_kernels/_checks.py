"""Argument checks: one error that names the argument, what it was and what it must be."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def show_shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(str(size) for size in shape) + "]"


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, must be a torch.Tensor")


def check_float_tensor(name: str, value: object) -> None:
    check_tensor(name, value)
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{name}: has dtype {value.dtype}, must be float32, bfloat16, float16 or float64"
        )


def check_shape(name: str, value: Tensor, shape: Sequence[int], axes: str) -> None:
    """``axes`` is the shape in words, for example "[..., W] = bias's shape"."""
    if tuple(value.shape) != tuple(shape):
        raise ValueError(
            f"{name}: has shape {show_shape(value.shape)}, must be {show_shape(shape)} ({axes})"
        )


def check_rank(name: str, value: Tensor, least: int, axes: str) -> None:
    if value.dim() < least:
        raise ValueError(f"{name}: has shape {show_shape(value.shape)}, must be {axes}")


def check_same_device(**tensors: Tensor | None) -> None:
    """All given tensors lie on the device of the first."""
    (first_name, first), *rest = [(n, t) for n, t in tensors.items() if t is not None]
    for name, tensor in rest:
        if tensor.device != first.device:
            raise ValueError(
                f"{name}: is on device {tensor.device}, must be on {first.device} like {first_name}"
            )


def check_number(name: str, value: object, low: float, high: float) -> None:
    """A finite Python number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name}: got {type(value).__name__}, must be a number")
    bounds = f"a finite number in [{low}, {high}]"
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}: is {value}, must be {bounds}")
    if not low <= value <= high:
        raise ValueError(f"{name}: is {value}, must be {bounds}")


def check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name}: got {type(value).__name__}, must be an integer")
    if not low <= value <= high:
        raise ValueError(f"{name}: is {value}, must be an integer in [{low}, {high}]")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: is {value!r}, must be one of {', '.join(choices)}")


def check_time(name: str, value: object, like: Tensor) -> Tensor:
    """A floating point tensor as it is, or a finite number as a 0-d tensor beside ``like``."""
    if isinstance(value, Tensor):
        check_float_tensor(name, value)
        return value
    check_number(name, value, -1e30, 1e30)
    return torch.full((), value, dtype=torch.float32, device=like.device)
