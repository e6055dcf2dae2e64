"""Keys and values of sampling, with room for the tokens to come.

transformers' ``DynamicCache`` concatenates: each token copies the keys and values of all before it,
which for T tokens is T^2 / 2 of them. Here a token writes its own; what is held is copied when the
room ends, 4 to 5 times T altogether. Both hold the same numbers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

# Tokens, beside a quarter of those that are held.
LEAST_ROOM = 32


class RoomyLayer(DynamicLayer):
    """Of one layer. ``keys`` and ``values`` are the written beginning of the room: [B, H, t, D]."""

    key_room: Tensor | None = None
    value_room: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        self.keys, self.key_room = appended(self.keys, held, self.key_room, key_states)
        self.values, self.value_room = appended(self.values, held, self.value_room, value_states)
        return self.keys, self.values


def appended(
    states: Tensor,  # [B, H, t, D], or anything where t is 0
    held: int,  # t
    room: Tensor | None,  # [B, H, t + more, D]
    new: Tensor,  # [B, H, n, D]
) -> tuple[Tensor, Tensor]:  # [B, H, t + n, D], its room
    """States and new ones behind them, within the room where it is theirs and large enough."""
    end = held + new.shape[-2]
    # Rows that leave, or come in another order, are a copy: the room is no longer theirs.
    theirs = room is not None and room.shape[0] == new.shape[0]
    if not theirs or room.data_ptr() != states.data_ptr() or room.shape[-2] < end:
        more = LEAST_ROOM + end // 4
        room = new.new_empty(*new.shape[:-2], end + more, new.shape[-1])
        if held:
            room[..., :held, :] = states
    room[..., held:end, :] = new
    return room[..., :end, :], room


def roomy_cache(model: PreTrainedModel) -> Cache | None:
    """What ``generate`` makes for this model, with room; None where it makes none by itself, or one
    whose layers hold more than keys and values."""
    if model._is_stateful or not model._supports_default_dynamic_cache():
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [
        RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
