"""The value flow as a module, for trainers: what ``dfpo_kernels/value_flow`` holds."""

from dfpo_kernels.value_flow import PathTargets, ValueFlowCoefs, ValueFlowHead, base_grid

__all__ = ["PathTargets", "ValueFlowCoefs", "ValueFlowHead", "base_grid"]
