"""Units of the field a second, silu(b + p z) g summed up, with everything in registers: what the
instructions of a unit allow on this card, whatever memory does. The floor of the flow kernels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from card import DEVICE, DRY, milliseconds

from dfpo_kernels.integrate_flow.triton_field import sigmoid

ELEMENTS, WARPS = 1024, 4


@triton.jit
def silu_kernel(
    out,  # [programs, ELEMENTS]
    turns,
    bias,
    gain,
    weight,
    ELEMENTS: tl.constexpr,
    SIGMOID: tl.constexpr,
):
    at = tl.program_id(0) * ELEMENTS + tl.arange(0, ELEMENTS)
    z = at.to(tl.float32) * 1e-6
    v = tl.zeros_like(z)
    for _ in tl.range(0, turns, loop_unroll_factor=4):
        # Other coefficients in every turn, or the compiler would take them out of the loop.
        x = bias + weight * z
        v += gain * (x * sigmoid(x, SIGMOID))
        bias += 1e-3
        weight += 1e-3
    tl.store(out + at, v)


def silu_rates() -> dict[str, float]:
    """By branch of the sigmoid: "exact" for float32 coefficients, "approximate" for halves."""
    programs, turns = (2, 4) if DRY else (132 * 64, 2048)
    out = torch.empty(programs * ELEMENTS, device=DEVICE)
    rates = {}
    # The interpreter runs no instruction of NVIDIA's special function unit.
    for branch in ("exact", "rounded" if DRY else "approximate"):

        def run(branch=branch):
            silu_kernel[(programs,)](
                out, turns, 0.1, 0.2, 0.3, ELEMENTS=ELEMENTS, SIGMOID=branch, num_warps=WARPS,
                enable_fp_fusion=True,
            )  # fmt: skip

        rates[branch] = 1e3 * out.numel() * turns / milliseconds(run)
    return rates
