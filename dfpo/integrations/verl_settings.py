"""What the variable ``DFPO_VERL`` says, and how verl lays out quantiles."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor

CRITICS = ("scalar", "quantile", "flow")
VARIABLE = "DFPO_VERL"


@dataclass(frozen=True)
class Settings:
    """What ``DFPO_VERL`` says; verl's own configuration keeps gamma, lam and the rest."""

    critic: str = "scalar"  # verl's own, "quantile" (regressed quantiles) or "flow"
    num_quantiles: int = 32  # Q
    width: int = 64  # ridge units of the flow's field
    return_low: float = 0.0  # range the critic starts with; returns are not clipped to it
    return_high: float = 1.0
    kappa: float = 0.05  # Huber threshold, in units of return
    target_lam: float | None = None  # trace of the critic's targets; default algorithm.lam
    length_alpha: float = 0.0  # > 0: lam = 1 - 1 / (alpha tokens) per sequence, as in VAPO

    def __post_init__(self) -> None:
        if self.critic not in CRITICS:
            raise ValueError(f"critic: is {self.critic!r}, must be one of {', '.join(CRITICS)}")
        if not self.return_low < self.return_high:
            raise ValueError(
                f"return_low: is {self.return_low}, must be below return_high {self.return_high}"
            )
        if self.length_alpha < 0:
            raise ValueError(f"length_alpha: is {self.length_alpha}, must be 0 or above")


def parse_settings(text: str) -> Settings:
    """ "1" for the defaults, or ``name=value`` pairs joined by commas.

    Raises:
        ValueError: naming the variable, the pair and what it must be.
    """
    if text.strip() == "1":
        return Settings()
    settings: dict[str, Any] = {}
    names = [field.name for field in dataclasses.fields(Settings)]

    for pair in text.split(","):
        name, _, value = (part.strip() for part in pair.partition("="))
        if name not in names:
            raise ValueError(
                f"{VARIABLE}: has {pair.strip()!r}, must be 1 or name=value pairs of {names}"
            )
        convert = {"critic": str, "num_quantiles": int, "width": int}.get(name, float)
        try:
            settings[name] = convert(value)
        except ValueError:
            raise ValueError(
                f"{VARIABLE}: {name} is {value!r}, must be {convert.__name__}"
            ) from None

    return Settings(**settings)


def cropped(values: Tensor, mask: Tensor) -> Tensor:  # [B, T' >= T, Q] -> [B, T, Q]
    """verl pads [B, T, Q] rows past the longest one where it has selected rows of a batch."""
    return values[:, : mask.shape[1]]
