"""The conditioned ridge field: the velocity of a value flow."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


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
