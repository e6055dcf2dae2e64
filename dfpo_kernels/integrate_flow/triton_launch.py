"""How the flow's Triton kernels are launched: the tile that a program keeps in registers.

Sizes of a run (Q, W) and options are constants of a kernel; the number of rows changes from call to
call, and one binary serves them all.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

import triton


class Launch(NamedTuple):
    elements: int  # of the tile that a program keeps in registers
    warps: int
    unroll: int  # of the inner loop
    reason: str


# Measured nowhere yet: chosen by registers and instructions of the compiled code. Nothing is
# searched for at run time.
LAUNCHES = MappingProxyType(
    {
        "forward": Launch(
            1024, 4, 4, "8 particles a thread share the loads of a unit's coefficients; 4 units in "
            "flight hide the latency of the special function unit"
        ),
        "adjoint": Launch(
            512, 4, 4, "4 particles a thread: rk4 keeps 4 slopes, 4 derivatives and the state of "
            "each"
        ),
        "coefficients": Launch(
            512, 4, 8, "4 units a thread: 4 sums and 4 coefficients of each stay in registers; 4 "
            "particles in flight instead of 8 spill on sm_100"
        ),
    }
)  # fmt: skip
# A warp of fewer particles per row than this reads the coefficients of too many rows at once.
LEAST_PARTICLES = 32


class Tile(NamedTuple):
    rows: int
    columns: int


def tile_of(elements: int, columns: int) -> Tile:
    """The tile of that many elements that wastes the fewest lanes on ``columns`` columns; on a tie
    the wider one, which reads fewer rows' coefficients."""
    wide = min(triton.next_power_of_2(columns), 4 * LEAST_PARTICLES)
    narrow = min(wide, LEAST_PARTICLES)
    sizes = [size for size in (wide, wide // 2, wide // 4) if size >= narrow]
    block = min(sizes, key=lambda size: (triton.cdiv(columns, size) * size, -size))
    return Tile(elements // block, block)
