"""What the value-flow loss takes beside states and targets: weights of its terms, later flows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

from torch import Tensor

from dfpo_kernels import _checks as checks
from dfpo_kernels.field import FlowField


def _coef(default: float, doc: str) -> float:
    return field(default=default, metadata={"doc": doc, "low": 0.0})


@dataclass(frozen=True)
class ValueFlowCoefs:
    """Weights of the terms of the value-flow loss; 0 switches a term off."""

    anchor: float = _coef(1.0, "flow matching on the bootstrapped targets")
    path: float = _coef(0.0, "path-coupled distributional flow matching")
    consistency: float = _coef(0.5, "one-step map against the integrated flow (straight paths)")
    quantile: float = _coef(1.0, "endpoint quantile Huber loss")
    mean: float = _coef(1.0, "token-mean regression")
    risk: float = _coef(0.1, "conditional value risk, both tails")
    mean_shift: float = _coef(0.0, "penalty on pessimism; biased, for the literal preset only")
    tail_shape: float = _coef(0.01, "variance and curvature of the tails")

    def __post_init__(self) -> None:
        for item in fields(self):
            checks.check_number(item.name, getattr(self, item.name), 0.0, 1e6)
        if self.anchor == 0 and self.consistency > 0:
            raise ValueError(
                "consistency: is above 0 while anchor is 0, must be 0 too: it would distil an "
                "untrained field"
            )


@dataclass(frozen=True)
class PathTargets:
    """What path-coupled flow matching needs beside the targets, shaped like ``mask`` [...].

    The flow of the state L tokens later, under a frozen critic, and the return in between.
    """

    field: FlowField  # bias, gain [..., W], offset [...]: V of the later state, no gradient
    rewards: Tensor  # [...], sum_l gamma^l r over the L tokens, in units of return
    discount: Tensor  # [...], gamma^L
    mask: Tensor  # [...], nonzero where the later state exists

    def select(self, keep: Tensor | slice) -> PathTargets:
        """The rows that ``keep`` picks."""
        return self.map(lambda x: x[keep])

    def map(self, pick: Callable[[Tensor], Tensor]) -> PathTargets:
        """``pick`` of every tensor that has a value per token."""
        per_token, shared = self.field[:3], self.field[3:]
        return PathTargets(
            FlowField(*map(pick, per_token), *shared),
            *map(pick, (self.rewards, self.discount, self.mask)),
        )
