"""The value flow: head, losses, and what they are given.

head.py    ValueFlowHead: hidden states -> fields -> quantiles, and its loss
inputs.py  weights of the loss's terms, and the later states of path coupling
losses.py  the terms on quantiles
mean.py    a distribution moved so that its mean is a given one
tokens.py  the tokens that a mask counts
"""

from dfpo_kernels.value_flow.head import ValueFlowHead, base_grid, build_conditioner
from dfpo_kernels.value_flow.inputs import PathTargets, ValueFlowCoefs

__all__ = ["PathTargets", "ValueFlowCoefs", "ValueFlowHead", "base_grid", "build_conditioner"]
