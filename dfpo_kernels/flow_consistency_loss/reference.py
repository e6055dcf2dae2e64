"""The definition of the flow consistency loss in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from dfpo_kernels.field import FlowField
from dfpo_kernels.integrate_flow.reference import compute_dtype, flow_velocity, integrate_flow


def flow_consistency_loss(
    field: FlowField,
    base: Tensor,  # [..., Q] or [Q]
    *,
    shortcut: FlowField | None = None,
    steps: int = 8,
    method: str = "euler",
) -> Tensor:  # [...]
    shortcut = field if shortcut is None else shortcut
    dtype = compute_dtype(*field, *shortcut, base)
    z = base.to(dtype).expand(*field.offset.shape, base.shape[-1])
    with torch.no_grad():
        displacement = integrate_flow(field, z, steps=steps, method=method) - z
    return (flow_velocity(shortcut, z, 0.0) - displacement).square().mean(-1)
