"""Fused kernels for distributional value flows; needs torch alone."""

from dfpo_kernels._dispatch import backends
from dfpo_kernels.field import FlowField
from dfpo_kernels.quantile_huber_loss import quantile_huber_loss

__all__ = ["FlowField", "backends", "quantile_huber_loss"]
