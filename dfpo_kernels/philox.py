"""Philox4x32-10, a counter-based random number generator, in plain PyTorch.

A random word is a pure function of a counter and a key: whoever names its sample by the same
counter draws the same number, on any device, in any batch, process or thread. The native kernels
draw the same words (csrc/philox.h).

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW_32 = 0xFFFFFFFF


def philox4x32(counter: Tensor, key: tuple[int, int] | Tensor) -> Tensor:
    """Four random 32-bit words for each counter.

    Args:
        counter: int64 [..., 4], of which the low 32 bits count.
        key: two numbers or int64 [..., 2], of which the low 32 bits count; see ``seed_key``.

    Returns:
        int64 [..., 4], words in [0, 2^32).
    """
    c0, c1, c2, c3 = (counter & _LOW_32).unbind(-1)
    k0, k1 = key.unbind(-1) if isinstance(key, Tensor) else key
    for step in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = (
            high1 ^ c1 ^ ((k0 + step * _KEY_STEPS[0]) & _LOW_32),
            low1,
            high0 ^ c3 ^ ((k1 + step * _KEY_STEPS[1]) & _LOW_32),
            low0,
        )

    return torch.stack((c0, c1, c2, c3), dim=-1)


def seed_key(seed: int) -> tuple[int, int]:
    """The key of a 64-bit seed: its low and high word."""
    return seed & _LOW_32, (seed >> 32) & _LOW_32


def uniform24(words: Tensor) -> Tensor:
    """Uniform float32 in [0, 1) from the upper 24 bits of each word, exact on every device."""
    return (words >> 8).to(torch.float32) * 2.0**-24


def _multiply(multiplier: int, x: Tensor) -> tuple[Tensor, Tensor]:
    # High and low word of a 64-bit product that signed int64 cannot hold: by halves of x.
    lower = multiplier * (x & 0xFFFF)
    upper = multiplier * (x >> 16) + (lower >> 16)
    return upper >> 16, ((upper & 0xFFFF) << 16) | (lower & 0xFFFF)
