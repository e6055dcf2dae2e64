"""Times other launch parameters of the flow kernels, and writes the best as a new table."""

from __future__ import annotations

import itertools
from functools import partial

import cases
import torch
from card import DEVICE, DRY, keep, milliseconds

from dfpo_kernels import FlowField
from dfpo_kernels.integrate_flow import triton_kernel

SIZES = [(8, 5, 6, 2)] if DRY else [(32_768, 64, 64, 8), (32_768, 200, 128, 8)]
ELEMENTS, WARPS, UNROLLS = (512, 1024, 2048), (4, 8), (4, 8)
if DRY:
    ELEMENTS, WARPS, UNROLLS = (512,), (4,), (4, 8)


def calls(size: tuple[int, int, int, int], dtype: torch.dtype) -> dict:
    """Kernel -> a call that launches it. The backward kernels run together."""
    rows, num_quantiles, width, steps = size
    field = FlowField(*(t.to(DEVICE, dtype) for t in cases.make_field(rows, width, False)))
    base = torch.randn(rows, num_quantiles, device=DEVICE)
    start, end = torch.zeros(1, 1, device=DEVICE), torch.ones(1, 1, device=DEVICE)
    options = (steps, "euler", False)
    _, path = triton_kernel.integrate_flow(*field, base, start, end, *options, True)
    backward = partial(
        triton_kernel.integrate_flow_backward,
        base, *field, path, start, end, False, *options, False,
    )  # fmt: skip
    return {
        "forward": partial(triton_kernel.integrate_flow, *field, base, start, end, *options, False),
        "adjoint": backward,
        "coefficients": backward,
    }


def main() -> None:
    table = triton_kernel.LAUNCHES
    records, best = [], {}
    try:
        for size, dtype in itertools.product(SIZES, (torch.float32, torch.bfloat16)):
            if DRY and dtype == torch.bfloat16:
                continue  # the interpreter has no tanh.approx
            for name, run in calls(size, dtype).items():
                for elements, warps, unroll in itertools.product(ELEMENTS, WARPS, UNROLLS):
                    launch = table[name]._replace(elements=elements, warps=warps, unroll=unroll)
                    triton_kernel.LAUNCHES = {**table, name: launch}
                    time = milliseconds(run, rounds=2 if DRY else 5)
                    records.append(
                        {
                            "kernel": name, "size": "R{} Q{} W{} K{}".format(*size),
                            "dtype": str(dtype).removeprefix("torch."), "elements": elements,
                            "warps": warps, "unroll": unroll, "milliseconds": time,
                        }
                    )  # fmt: skip
                    keep({"records": records})
                triton_kernel.LAUNCHES = table
    finally:
        triton_kernel.LAUNCHES = table
    for name in table:
        own = [r for r in records if r["kernel"] == name]
        parameters = {(r["elements"], r["warps"], r["unroll"]) for r in own}
        cells = {(r["size"], r["dtype"]) for r in own}

        def slowdown(chosen, own=own, cells=cells):
            """Worst over sizes and dtypes of the time over the best time there."""
            worst = 1.0
            for cell in cells:
                there = [r for r in own if (r["size"], r["dtype"]) == cell]
                fastest = min(r["milliseconds"] for r in there)
                mine = next(r for r in there if (r["elements"], r["warps"], r["unroll"]) == chosen)
                worst = max(worst, mine["milliseconds"] / fastest)
            return worst

        chosen = min(parameters, key=slowdown)
        now = (table[name].elements, table[name].warps, table[name].unroll)
        best[name] = {
            "elements": chosen[0], "warps": chosen[1], "unroll": chosen[2],
            "worst_slowdown": slowdown(chosen),
            "slowdown_of_the_table": slowdown(now) if now in parameters else None,
        }  # fmt: skip
        print(name, best[name])
    keep({"records": records, "best": best})


if __name__ == "__main__":
    main()
