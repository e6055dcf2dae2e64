"""Times other launch parameters of the flow kernels, and writes the best as a new table."""

from __future__ import annotations

import itertools
from functools import partial

import cases
import torch
from card import DEVICE, DRY, keep, milliseconds

from dfpo_kernels import FlowField
from dfpo_kernels.integrate_flow import triton_kernel

SIZES = [(8, 5, 6, 2)] if DRY else [(32_768, 64, 64, 8)]
# Compiling takes a second or two each, so only what could win: elements of a tile, warps.
TILES = [(512, 4)] if DRY else [(512, 4), (1024, 4), (1024, 8), (2048, 8), (256, 4)]
UNROLLS = (4, 8)
Parameters = tuple[int, int, int]  # elements, warps, unroll


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


def parameters_of(record: dict) -> Parameters:
    return record["elements"], record["warps"], record["unroll"]


def worst_slowdown(records: list[dict], chosen: Parameters) -> float | None:
    """Worst over sizes and dtypes of the time over the best time there; None if not tried in all
    of them."""
    cells: dict[tuple[str, str], dict[Parameters, float]] = {}
    for record in records:
        cell = cells.setdefault((record["size"], record["dtype"]), {})
        cell[parameters_of(record)] = record["milliseconds"]
    if any(chosen not in cell for cell in cells.values()):
        return None
    return max(cell[chosen] / min(cell.values()) for cell in cells.values())


def best_of(records: list[dict]) -> dict[str, dict]:
    """Kernel -> the parameters that are least far from the best everywhere, and the table's own."""
    best = {}
    for name, launch in triton_kernel.LAUNCHES.items():
        own = [record for record in records if record["kernel"] == name]
        slowdowns = {p: worst_slowdown(own, p) for p in map(parameters_of, own)}
        tried = {p: slowdown for p, slowdown in slowdowns.items() if slowdown}
        if tried:
            chosen = min(tried, key=tried.get)
            best[name] = {
                "elements": chosen[0], "warps": chosen[1], "unroll": chosen[2],
                "worst_slowdown": tried[chosen],
                "slowdown_of_the_table": tried.get((launch.elements, launch.warps, launch.unroll)),
            }  # fmt: skip
    return best


def main() -> None:
    table = triton_kernel.LAUNCHES
    records: list[dict] = []
    # The interpreter has no tanh.approx.
    dtypes = (torch.float32,) if DRY else (torch.float32, torch.bfloat16)
    for size in SIZES:
        runs = {dtype: calls(size, dtype) for dtype in dtypes}
        for name, (elements, warps), unroll in itertools.product(table, TILES, UNROLLS):
            launch = table[name]._replace(elements=elements, warps=warps, unroll=unroll)
            for dtype in dtypes:
                triton_kernel.LAUNCHES = {**table, name: launch}
                try:
                    time = milliseconds(runs[dtype][name], rounds=5)
                finally:
                    triton_kernel.LAUNCHES = table
                records.append(
                    {
                        "kernel": name, "size": "R{} Q{} W{} K{}".format(*size),
                        "dtype": str(dtype).removeprefix("torch."), "elements": elements,
                        "warps": warps, "unroll": unroll, "milliseconds": time,
                    }
                )  # fmt: skip
                keep({"records": records, "best": best_of(records)})
    for name, best in best_of(records).items():
        print(name, best)


if __name__ == "__main__":
    main()
