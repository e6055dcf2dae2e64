"""A reward that several processes share: the first one scores, all get the same scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dfpo.config.types import Scored
from dfpo.rewards.functions import Reward
from dfpo.rollout.processes import Processes


@dataclass(frozen=True)
class SharedReward:
    """Loaded and called in the first process alone: a function may keep a state, draw at random or
    cost money, and a reward model takes memory."""

    reward: Reward | None  # None but in the first process
    names: tuple[str, ...]
    extract: Callable[[str, str], str | None] | None

    def __call__(self, *batch: Any, **options: Any) -> Scored:
        return Processes.here().from_lead(lambda: self.reward(*batch, **options))


def shared_reward(
    load: Callable[[], Reward], extract: Callable[[str, str], str | None] | None
) -> Reward | SharedReward:
    """What ``load`` gives, or where there are several processes one that they share."""
    processes = Processes.here()
    if processes.count == 1:
        return load()
    kept: list[Reward] = []

    def names() -> tuple[str, ...]:
        kept.append(load())
        return kept[0].names

    shown = processes.from_lead(names)
    return SharedReward(kept[0] if kept else None, shown, extract)
