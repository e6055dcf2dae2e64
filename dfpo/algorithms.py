"""The table of algorithms: each is a set of settings over the defaults of ``dfpo.config``.

The loop is one; what differs is the critic, its targets and the weights of its losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Algorithm:
    """A preset: what it is, where it comes from, and the settings that make it."""

    summary: str
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)


ALGORITHMS: dict[str, Algorithm] = {
    "dfpo": Algorithm(
        "value-flow critic, corrected so that the value distribution keeps its spread",
        "arXiv 2602.05890; corrections are this project's",
    ),
    "dfpo-paper": Algorithm(
        "value-flow critic as literally summarised: one field, one-step readout, quantile-wise "
        "GAE targets, shared noise, tail means",
        "arXiv 2602.05890 with the forms of 2512.03847 and 2510.07650",
        {
            "critic.channels": 1,
            "critic.readout": "one_step",
            "critic.coupling": "shared_noise",
            "critic.weight_mode": "vf",
            "critic.risk_form": "tail_mean",
            "target.kind": "gae",
            "target.path_lam": 0.0,
            "coef.path": 1.0,
            "coef.consistency": 0.1,
            "coef.quantile": 0.0,
            "coef.mean": 0.0,
            "coef.mean_shift": 0.05,
        },
    ),
    "ppo": Algorithm(
        "the same loop with a scalar critic",
        "arXiv 1707.06347, GAE of 1506.02438",
        {"critic.kind": "scalar", "target.kind": "gae"},
    ),
}
