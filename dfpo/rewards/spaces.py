"""Told rewards through a running monotone map, so that no range of theirs need be known.

A map is made from the latest told rewards, of all answers or of those that share a column's value.
Advantages and critic targets are made of mapped rewards; what a critic predicts is mapped back. The
rewards that a map is made from are its whole state, equal in all processes, and a file of each
checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dfpo.config import Config
from dfpo.config.spaces import SPACES
from dfpo.config.types import Estimate, Rollout, Row
from dfpo.tasks.source import column_of

# A normal distribution's standard deviation over its median, and its mean, absolute deviation.
MEDIAN_TO_DEVIATION, MEAN_TO_DEVIATION = 1.4826, 1.2533


class Map(Protocol):
    """Both ways between told rewards and their space, in float64, of any shape."""

    def forward(self, rewards: Tensor) -> Tensor: ...

    def inverse(self, mapped: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Knots:
    """Straight lines between points in ascending order, level beyond them."""

    rewards: Tensor  # [N]
    mapped: Tensor  # [N]

    def forward(self, rewards: Tensor) -> Tensor:
        return _interpolate(rewards, self.rewards, self.mapped)

    def inverse(self, mapped: Tensor) -> Tensor:
        return _interpolate(mapped, self.mapped, self.rewards)


@dataclass(frozen=True)
class Standard:
    """(r - location) / scale."""

    location: Tensor
    scale: Tensor

    def forward(self, rewards: Tensor) -> Tensor:
        return (rewards - self.location) / self.scale

    def inverse(self, mapped: Tensor) -> Tensor:
        return mapped * self.scale + self.location


@dataclass(frozen=True)
class Asinh(Standard):
    """asinh((r - location) / scale): a straight line near the middle, a logarithm far from it."""

    def forward(self, rewards: Tensor) -> Tensor:
        return super().forward(rewards).asinh()

    def inverse(self, mapped: Tensor) -> Tensor:
        return super().inverse(mapped.sinh())


def cdf(told: Tensor) -> Map:  # [N] float64
    """P(R < r) + P(R = r) / 2 over told rewards R, stretched so that the least is 0 and the largest
    1. Rewards of two values are 0 and 1 whatever their shares; equal ones are in the middle."""
    ordered = told.sort().values
    below = torch.searchsorted(ordered, ordered)
    at_most = torch.searchsorted(ordered, ordered, right=True)
    middle = (below + at_most).double()
    stretch = middle[-1] - middle[0]
    mapped = torch.where(stretch > 0, (middle - middle[0]) / stretch.clamp_min(1), 0.5)
    return Knots(ordered, mapped)


def asinh(told: Tensor) -> Map:  # [N] float64
    """Around the median, in units of the median absolute deviation; of the mean one where more than
    half of the rewards are equal."""
    location = told.quantile(0.5)
    away = (told - location).abs()
    middle, mean = MEDIAN_TO_DEVIATION * away.quantile(0.5), MEAN_TO_DEVIATION * away.mean()
    return Asinh(location, _positive(torch.where(_negligible(middle, told), mean, middle), told))


def standard(told: Tensor) -> Map:  # [N] float64
    """Mean 0 and standard deviation 1 over told rewards."""
    return Standard(told.mean(), _positive(told.std(correction=0), told))


@dataclass
class RewardSpace:
    """The space that ``reward.space`` names, and the told rewards that its maps are made from."""

    kind: str
    by: str | None
    window: int
    told: dict[str, Tensor] = field(default_factory=dict)  # group -> [N], the latest last
    _maps: dict[str | None, Map] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(config: Config) -> RewardSpace:
        reward = config.reward
        return RewardSpace(reward.space, reward.space_by, reward.space_window)

    @property
    def is_raw(self) -> bool:
        return self.kind == "raw"

    def tell(self, rollout: Rollout) -> None:
        """Adds a rollout's told rewards to those that the maps are made from."""
        if self.is_raw:
            return
        for name, member in self._groups(rollout.answers.rows).items():
            rewards = rollout.rewards[member]
            before = self.told.get(name, rewards[:0])
            # A step of more answers than the window is known as a whole.
            kept = max(self.window, len(rewards))
            self.told[name] = torch.cat([before, rewards])[-kept:]
        self._maps.clear()

    def restore(self, told: dict[str, Tensor]) -> None:
        """Goes on from what another had been told."""
        self.told = told
        self._maps.clear()

    def mapped(self, rollout: Rollout) -> Rollout:
        """The rollout with its rewards, told and clean, in the space."""
        if self.is_raw:
            return rollout
        rewards = clean = self._through(rollout.rewards, rollout.answers.rows, "forward")
        # The very same tensor where there is no noise, by which others know.
        if rollout.clean_rewards is not rollout.rewards:
            clean = self._through(rollout.clean_rewards, rollout.answers.rows, "forward")
        return dataclasses.replace(rollout, rewards=rewards, clean_rewards=clean)

    def returns(self, predicted: Tensor, rows: Sequence[Row]) -> Tensor:  # [B, ...]
        """What a critic predicts of answers to some rows, in units of told rewards."""
        return predicted if self.is_raw else self._through(predicted, rows, "inverse")

    def readout(self, estimate: Estimate, rows: Sequence[Row]) -> Estimate:
        """An estimate in units of told rewards."""
        if self.is_raw:
            return estimate
        return dataclasses.replace(
            estimate,
            quantiles=self.returns(estimate.quantiles, rows),
            final=self.returns(estimate.final, rows),
        )

    def _through(self, values: Tensor, rows: Sequence[Row], way: str) -> Tensor:
        result = torch.empty_like(values)
        for name, member in self._groups(rows).items():
            change = getattr(self._map(name), way)
            result[member] = change(values[member].double()).to(values.dtype)
        return result

    def _groups(self, rows: Sequence[Row]) -> dict[str, list[int] | slice]:
        """Which of the rows each group has."""
        if self.by is None:
            return {"all": slice(None)}  # no index, which a GPU would wait for
        names = [column_of(row, self.by) for row in rows]
        groups: dict[str, list[int]] = {name: [] for name in names}
        for i, name in enumerate(names):
            groups[name].append(i)
        return groups

    def _map(self, name: str) -> Map:
        """A group's own; that of all told rewards for a group of which none was told."""
        key = name if name in self.told else None
        if key not in self._maps:
            self._maps[key] = self._make(key)
        return self._maps[key]

    def _make(self, name: str | None) -> Map:
        # In one order, so that sums over them have the same bits after a resume.
        groups = sorted(self.told) if name is None else [name]
        if not groups:
            # Of no rewards nothing is known: what is predicted stays as it is.
            return Standard(torch.tensor(0.0), torch.tensor(1.0))
        told = torch.cat([self.told[group] for group in groups])
        return SPACES[self.kind].load()(told.double())


def _interpolate(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:  # [...], [N], [N]
    """Between knots in ascending order, which may repeat; level beyond them."""
    last = len(xs) - 1
    right = torch.searchsorted(xs, x.contiguous()).clamp(min(1, last), last)
    left = (right - 1).clamp_min(0)
    gap = xs[right] - xs[left]
    share = torch.where(gap > 0, (x - xs[left]) / gap.clamp_min(1e-300), 1.0).clamp(0, 1)
    return ys[left] + share * (ys[right] - ys[left])


def _negligible(spread: Tensor, told: Tensor) -> Tensor:
    """Whether a spread is no more than what rounding makes of equal rewards."""
    return spread <= 1e-12 * told.abs().max()


def _positive(spread: Tensor, told: Tensor) -> Tensor:
    """A spread to divide by: 1 where all rewards are equal."""
    return torch.where(_negligible(spread, told), 1.0, spread)
