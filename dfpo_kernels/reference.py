"""Every public op as its definition: plain PyTorch, differentiable, float64-capable."""

from dfpo_kernels.distributional_gae.reference import (
    distributional_gae,
    lambda_mixture_targets,
)
from dfpo_kernels.flow_consistency_loss.reference import flow_consistency_loss
from dfpo_kernels.integrate_flow.reference import flow_velocity, integrate_flow
from dfpo_kernels.quantile_huber_loss.reference import quantile_huber_loss

__all__ = [
    "distributional_gae",
    "flow_consistency_loss",
    "flow_velocity",
    "integrate_flow",
    "lambda_mixture_targets",
    "quantile_huber_loss",
]
