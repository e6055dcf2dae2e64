"""Argument checks: one error that names the argument, what it was and what it must be."""

from __future__ import annotations

import numbers
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


def check_number(name: str, value: object, low: float, high: float) -> float:
    """A finite number in [low, high], NumPy's included, as a Python number."""
    if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        # Python's ABC knows NumPy's numbers without this package knowing NumPy.
        if not isinstance(value, numbers.Real):
            raise TypeError(f"{name}: got {type(value).__name__}, must be a number")
        value = float(value)

    if isinstance(value, bool):
        raise TypeError(f"{name}: got bool, must be a number")
    # NaN and the infinities fail the comparison too.
    if not low <= value <= high:
        raise ValueError(f"{name}: is {value}, must be a finite number in [{low}, {high}]")
    # Beyond what torch takes as an integer.
    big = isinstance(value, int) and abs(value) > 2**53

    return float(value) if big else value


def check_integer(name: str, value: object, low: int, high: int) -> int:
    """An integer in [low, high], NumPy's included, as a Python integer."""
    if not isinstance(value, (int, torch.SymInt)):
        if not isinstance(value, numbers.Integral):
            raise TypeError(f"{name}: got {type(value).__name__}, must be an integer")
        value = int(value)

    if isinstance(value, bool):
        raise TypeError(f"{name}: got bool, must be an integer")
    if not low <= value <= high:
        raise ValueError(f"{name}: is {value}, must be an integer in [{low}, {high}]")
    return value


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: is {value!r}, must be one of {', '.join(choices)}")


def check_time(name: str, value: object, like: Tensor) -> Tensor:
    """A floating point tensor as it is, or a finite number as a 0-d tensor beside ``like``."""
    if isinstance(value, Tensor):
        check_float_tensor(name, value)
        return value
    number = check_number(name, value, -1e30, 1e30)
    return torch.full((), number, dtype=torch.float32, device=like.device)
