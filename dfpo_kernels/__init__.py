"""Fused kernels for distributional value flows; needs torch alone."""

from dfpo_kernels._dispatch import backends
from dfpo_kernels.distributional_gae import distributional_gae, lambda_mixture_targets
from dfpo_kernels.field import FlowField
from dfpo_kernels.quantile_huber_loss import quantile_huber_loss

__all__ = [
    "FlowField",
    "backends",
    "distributional_gae",
    "lambda_mixture_targets",
    "quantile_huber_loss",
]
