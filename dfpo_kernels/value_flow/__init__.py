"""The value flow: head, losses, and what they are given.

head.py        ValueFlowHead: hidden states -> fields -> quantiles, and its loss
base_noise.py  what the flow starts from: a grid of quantiles, and draws in training
inputs.py      weights of the loss's terms, and the later states of path coupling
losses.py      the terms on quantiles
mean.py        a distribution moved so that its mean is a given one
tokens.py      the tokens that a mask counts
"""

from dfpo_kernels.value_flow.base_noise import base_grid
from dfpo_kernels.value_flow.head import ValueFlowHead, build_conditioner
from dfpo_kernels.value_flow.inputs import PathTargets, ValueFlowCoefs

__all__ = ["PathTargets", "ValueFlowCoefs", "ValueFlowHead", "base_grid", "build_conditioner"]
