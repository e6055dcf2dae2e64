"""The conditioned ridge field: the velocity of a value flow."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dfpo_kernels import _checks as checks


class FlowField(NamedTuple):
    """Coefficients of the velocity field of one value flow per token.

    velocity(z, s) = offset + sum_w gain_w * silu(bias_w + z_weight_w * z + time_weight_w * s)

    A one-hidden-layer function of the scalar return ``z`` and the flow time ``s`` in [0, 1]. All
    depth lies in the conditioner that makes ``bias``, ``gain`` and ``offset`` once per token; what
    runs per quantile and solver step is ``W`` silu evaluations.
    """

    bias: Tensor  # [..., W], token conditioning
    gain: Tensor  # [..., W], token output weights
    offset: Tensor  # [...], token output offset
    z_weight: Tensor  # [W], shared by all tokens
    time_weight: Tensor  # [W], shared by all tokens


def check_field(name: str, field: object) -> None:
    """A FlowField of floating point tensors of matching shapes on one device."""
    if not isinstance(field, FlowField):
        raise TypeError(f"{name}: got {type(field).__name__}, must be a FlowField")
    tensors = {f"{name}.{part}": tensor for part, tensor in field._asdict().items()}
    for part, tensor in tensors.items():
        checks.check_float_tensor(part, tensor)

    checks.check_rank(f"{name}.bias", field.bias, 1, "[..., W]")
    *lead, width = field.bias.shape
    if width < 1:
        raise ValueError(f"{name}.bias: has W = 0, must have at least one unit")
    checks.check_shape(f"{name}.gain", field.gain, (*lead, width), "[..., W], the shape of bias")
    checks.check_shape(f"{name}.offset", field.offset, lead, "[...], bias without its last axis")
    checks.check_shape(f"{name}.z_weight", field.z_weight, (width,), "[W]")
    checks.check_shape(f"{name}.time_weight", field.time_weight, (width,), "[W]")
    checks.check_same_device(**tensors)


def as_rows(field: FlowField) -> FlowField:
    """The same field with its leading axes flattened to one, [R]."""
    width = field.bias.shape[-1]
    return FlowField(
        field.bias.reshape(-1, width),
        field.gain.reshape(-1, width),
        field.offset.reshape(-1),
        field.z_weight,
        field.time_weight,
    )
