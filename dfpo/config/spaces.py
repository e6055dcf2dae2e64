"""The words of ``reward.space``: the scale in which critics learn. ``dfpo.rewards.spaces`` maps."""

from __future__ import annotations

from dataclasses import dataclass

from dfpo.config.tables import Choice

_RUNNING = ("reward.space_by", "reward.space_window")


@dataclass(frozen=True)
class Space(Choice):
    """A row: a Choice and the range that critics, bounds and windows count in."""

    low: float = -1.0
    high: float = 1.0
    bounded: bool = False  # whether no mapped reward leaves that range


SPACES: dict[str, Space] = {
    "raw": Space("rewards as they are told, in their range", reads=("reward.clip",)),
    "asinh": Space(
        "asinh((r - median) / spread), spread the scaled median absolute deviation; both running",
        "dfpo.rewards.spaces:asinh",
        _RUNNING,
    ),
    "cdf": Space(
        "the running distribution function of told rewards, its ends moved to 0 and 1",
        "dfpo.rewards.spaces:cdf",
        _RUNNING,
        low=0.0,
        bounded=True,
    ),
    "standard": Space(
        "(r - mean) / standard deviation, both running", "dfpo.rewards.spaces:standard", _RUNNING
    ),
}
