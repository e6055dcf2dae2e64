"""Fused kernels for distributional value flows; needs torch alone."""

from dfpo_kernels import reference
from dfpo_kernels._dispatch import backends
from dfpo_kernels.distributional_gae import distributional_gae, lambda_mixture_targets
from dfpo_kernels.field import FlowField
from dfpo_kernels.flow_consistency_loss import flow_consistency_loss
from dfpo_kernels.integrate_flow import flow_velocity, integrate_flow
from dfpo_kernels.quantile_huber_loss import quantile_huber_loss
from dfpo_kernels.warmup import warmup

__all__ = [
    "FlowField",
    "backends",
    "distributional_gae",
    "flow_consistency_loss",
    "flow_velocity",
    "integrate_flow",
    "lambda_mixture_targets",
    "quantile_huber_loss",
    "reference",
    "warmup",
]
