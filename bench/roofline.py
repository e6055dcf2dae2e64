"""Writes bench/roofline.md: what each op would cost at published rates of four GPUs, beside what it
took on one where that was measured.

    PYTHONPATH=tests python bench/roofline.py

Instructions come from the machine code of this tree's kernels (tests/kernels/gpu_code.py), bytes
from the tensors that an op reads and writes. A time is the largest of what instruction issue, float
arithmetic, the special function unit and memory each need: a floor. Measured times come from
results/gpu/*.json, which ``make gpu-day`` writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from dfpo_kernels.quantile_huber_loss.triton_kernel import LEAST_LONG


class Device(NamedTuple):
    """Published rates. Per multiprocessor and clock: 128 lanes issue an instruction, and 16 get a
    result of the special function unit (CUDA C++ programming guide, arithmetic throughput)."""

    name: str
    target: str
    multiprocessors: int
    clock: float  # boost, Hz
    float_lanes: int  # fused multiply-adds a clock and multiprocessor
    bandwidth: float  # bytes a second
    dense_bf16: float  # FLOP a second of the tensor cores

    def seconds(self, work: Work) -> tuple[float, str]:
        """The floor, and what sets it."""
        clocks = self.multiprocessors * self.clock
        needs = {
            "issue": work.instructions / (128 * clocks),
            "float": work.floats / (self.float_lanes * clocks),
            "special": work.specials / (16 * clocks),
            "memory": work.bytes / self.bandwidth,
        }
        limit = max(needs, key=needs.get)
        return needs[limit], limit


class Work(NamedTuple):
    """Of a whole op; instructions are those of a lane."""

    instructions: float
    floats: float
    specials: float
    bytes: float


class Eager(NamedTuple):
    traffic: float  # bytes
    memory: float  # bytes kept for the backward pass


# NVIDIA's data sheets: A100 80 GB SXM, H100 SXM5, H200 SXM, and HGX B200 by its eight GPUs. B200's
# clock is what its 75 TFLOP/s of float32 take.
DEVICES = (
    Device("A100", "sm_80", 108, 1.41e9, 64, 2.039e12, 312e12),
    Device("H100", "sm_90", 132, 1.98e9, 128, 3.35e12, 989e12),
    Device("H200", "sm_90", 132, 1.98e9, 128, 4.8e12, 989e12),
    Device("B200", "sm_100", 148, 1.98e9, 128, 7.7e12, 2250e12),
)
TARGETS = tuple(dict.fromkeys(device.target for device in DEVICES))
MEASURED = Path(__file__).resolve().parent.parent / "results" / "gpu"
FLOAT = 4


def rates(reports: list[dict], kernel: str, branch: str, target: str) -> tuple[float, float, float]:
    """Instructions, float and special function results per silu of a kernel."""
    report = next(
        r for r in reports
        if (r["kernel"], r["branch"], r["target"]) == (kernel, branch, target)
        and r["method"] in (None, "euler")
    )  # fmt: skip
    return report["per_silu"], report["float_per_silu"], report["special_per_silu"]


def integrate(
    reports: list[dict], target: str, branch: str, size: tuple[int, int, int, int], backward: bool
) -> Work:
    R, Q, W, K = size
    half = branch == "approximate"
    coefficients = (2 * R * W + R) * (2 if half else FLOAT)
    silus = R * Q * W * K
    kernels = ["integrate_kernel"]
    # Base shared by all rows; the end, and for a gradient the path.
    moved = coefficients + R * Q * FLOAT
    if backward:
        kernels += ["adjoint_kernel", "coefficients_kernel"]
        # The path is written and read; slopes go through the cache. Coefficients are read twice
        # more and their gradients written; so are the gradient of the end and of the base.
        moved += 2 * R * K * Q * FLOAT + 3 * coefficients + 2 * R * Q * FLOAT
    found = [rates(reports, kernel, branch, target) for kernel in kernels]
    return Work(*(silus * sum(rate) for rate in zip(*found, strict=True)), moved)


def integrate_eager(size: tuple[int, int, int, int], backward: bool) -> Eager:
    """(silu(bias + z p + s t) * gain).sum(-1) + offset, step after step. Of [R, Q, W], forward: the
    product, the sum with the bias, silu and the product with the gain are written, the last three
    and the sum read; backward 14 more. Kept: silu's argument and value."""
    R, Q, W, K = size
    tensor = R * Q * W * FLOAT
    return Eager((22 if backward else 8) * K * tensor, 2 * K * tensor if backward else 2 * tensor)


def huber(reports: list[dict], target: str, R: int, Q: int) -> tuple[Work, Eager]:
    """Both gradients. All pairs by the instructions of the loops; a row that is sorted by all
    instructions of its program, whose loops are unrolled, and which the fallback's are part of."""
    pairs = R * Q * Q
    moved = 4 * R * Q * FLOAT
    if Q < LEAST_LONG:
        report = huber_report(reports, "quantile_huber_kernel", target)
        work = Work(report["per_pair"] * pairs, report["float_per_pair"] * pairs, 0, moved)
    else:
        report = huber_report(reports, "quantile_huber_sorted_kernel", target)
        # Of 512 numbers, by 8 warps; a longer row takes a little more for each of its numbers.
        work = Work(report["instructions"] * 8 * 32 * R * Q / 512, 0, 0, moved)
    # u, |u|, the square and its half, the choice, the indicator, the weight and the product, each
    # written and most of them read, forward; about as much again backward.
    return work, Eager(32 * pairs * FLOAT, 6 * pairs * FLOAT)


def huber_report(reports: list[dict], kernel: str, target: str) -> dict:
    return next(
        r for r in reports
        if (r["kernel"], r["method"], r["target"]) == (kernel, "huber", target)
    )  # fmt: skip


SCANS = {"distributional_gae": "GaeScan", "lambda_mixture_targets": "MixtureScan"}


def scan(
    reports: list[dict], target: str, op: str, size: tuple[int, int, int]
) -> tuple[Work, Eager]:
    """By the instructions of a thread's whole program over the tokens of its share: of branches by
    dtype and mask more than are taken, of loops over tokens fewer."""
    B, T, Q = size
    particles = B * T * Q
    path, share = ("direct wide", 16) if Q >= 32 else ("staged wide", 8)
    kernel = f"scan_kernel<{SCANS[op]}, {path}>"
    report = next(r for r in reports if (r["kernel"], r["target"]) == (kernel, target))
    outputs = 2 if op == "distributional_gae" else 1
    moved = B * T * (FLOAT + 1) + particles * FLOAT * (1 + outputs)
    work = Work(report["instructions"] / share * particles, 0, 0, moved)
    # A loop over tokens: 8 operations of two reads and a write each.
    return work, Eager(24 * particles * FLOAT, moved)


def measured_times() -> dict[tuple[str, str, str], str]:
    """(op, size, dtype) -> milliseconds by replays of a graph, or by events where there are none,
    and the card."""
    times = {}
    for path in sorted(MEASURED.glob("*.json")):
        ops = json.loads(path.read_text()).get("ops", {}).get("record") or {"records": []}
        for record in ops["records"]:
            graph, own = record["graph_milliseconds"], record["milliseconds"]["ours"]
            time = graph if isinstance(graph, (int, float)) else own
            if time is not None:
                key = (record["op"], record["size"], record["dtype"])
                times[key] = f"{time:.3g} {path.stem.upper()}"
    return times


def show(number: float, units: str = "B") -> str:
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}{units}".strip()
    return f"{number:.3g} {units}".strip()


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def row(op: str, size: str, dtype: str, works: dict[str, Work], eager: Eager) -> list[str]:
    shown = works["sm_90"]
    cells = [op, size, dtype, show(shown.instructions, ""), show(shown.bytes)]
    for device in DEVICES:
        seconds, limit = device.seconds(works[device.target])
        cells += [f"{milliseconds(seconds)} {limit}"]
    # Eager is bound by memory; its kernels reach the published bandwidth at best.
    h200 = next(device for device in DEVICES if device.name == "H200")
    cells += [measured_times().get((op, size, dtype), "-")]
    cells += [milliseconds(eager.traffic / h200.bandwidth)]
    return [*cells, show(eager.traffic), show(eager.memory)]


HEADER = [
    "op", "size", "dtype", "lane instructions", "bytes", *(f"{d.name}, ms" for d in DEVICES),
    "measured on a card, ms", "eager H200, ms", "eager traffic", "eager memory",
]  # fmt: skip
# Rows R: times grow in proportion.
SIZES = [
    (R, Q, W, K)
    for R in (32_768, 262_144)
    for Q, W in ((32, 64), (64, 64), (200, 128))
    for K in (1, 8)
]
SCAN_SIZES = [(64, 1024, 32), (64, 4096, 64), (512, 4096, 1), (8, 32_768, 1), (1, 131_072, 1)]


def flow_rows(reports: list[dict], backward: bool) -> Iterator[list[str]]:
    op = "integrate_flow forward+backward" if backward else "integrate_flow forward"
    for size in SIZES:
        for branch, dtype in (("exact", "float32"), ("approximate", "bfloat16")):
            works = {
                target: integrate(reports, target, branch, size, backward) for target in TARGETS
            }
            name = "R{} Q{} W{} K{}".format(*size)
            yield row(op, name, dtype, works, integrate_eager(size, backward))


def other_rows(reports: list[dict]) -> Iterator[list[str]]:
    for R in (32_768, 262_144):
        for Q in (32, 64, 200):
            works = {target: huber(reports, target, R, Q)[0] for target in TARGETS}
            eager = huber(reports, TARGETS[0], R, Q)[1]
            op = "quantile_huber_loss forward+backward"
            yield row(op, f"R{R} Q{Q} P{Q}", "float32", works, eager)
    for op in SCANS:
        for size in SCAN_SIZES:
            works = {target: scan(reports, target, op, size)[0] for target in TARGETS}
            eager = scan(reports, TARGETS[0], op, size)[1]
            yield row(op, "B{} T{} Q{}".format(*size), "float32", works, eager)


def update_seconds(device: Device) -> float:
    """6 FLOP per weight and token for the policy, at 40 % of the tensor cores' rate."""
    return 6 * 7e9 * 262_144 / (0.4 * device.dense_bf16)


def step_rows(reports: list[dict]) -> Iterator[list[str]]:
    """Shares of one update of a 7B model on 262144 tokens."""
    R, Q, W = 262_144, 64, 64
    for device in DEVICES:
        step = update_seconds(device)

        def line(op, seconds, eager, step=step, device=device):
            slow = eager.traffic / device.bandwidth
            return [
                device.name, op, milliseconds(seconds), f"{100 * seconds / step:.4f} %",
                f"{100 * slow / step:.3f} %", show(eager.memory),
            ]  # fmt: skip

        for K in (1, 8):
            size = (R, Q, W, K)
            work = integrate(reports, device.target, "approximate", size, True)
            eager = integrate_eager(size, True)
            name = f"integrate_flow forward+backward, K={K}"
            yield line(name, device.seconds(work)[0], eager)
        for name, (work, eager) in (
            ("quantile_huber_loss, P=64", huber(reports, device.target, R, Q)),
            *((op, scan(reports, device.target, op, (256, R // 256, Q))) for op in SCANS),
        ):
            yield line(name, device.seconds(work)[0], eager)


def document(reports: list[dict]) -> str:
    def table(rows, header=HEADER):
        return tabulate(rows, header, tablefmt="github", disable_numparse=True)

    shown = ", ".join(f"{update_seconds(d):.1f} s ({d.name})" for d in DEVICES)
    step_header = ["GPU", "op", "ms", "share of the update", "eager's share", "eager's memory"]
    return f"""# Roofline

Made by `PYTHONPATH=tests python bench/roofline.py`. Each time of a GPU is a floor: the largest of
what instruction issue, float arithmetic, the special function unit and memory need at published
rates (A100 80 GB SXM, H100 SXM5, H200 SXM, B200); the word after it says which. Instructions are
counted in the machine code of the kernels: of a silu or a pair in the inner loops, of a sorted row
or a scan in the whole program, of whose branches not all are taken. What was measured on a card
stands beside, from [results/gpu](../results/gpu): by replays of a graph, else by events, which
launching on the host can add to; H200 is a first run, before its scans and long rows were changed.
Eager is PyTorch, operation by operation, taken to run at the full bandwidth: a floor too. R token
rows, Q quantiles, P targets, W flow width, K euler steps, B sequences of T tokens; particles
float32, base shared.

## integrate_flow, forward

{table(flow_rows(reports, backward=False))}

## integrate_flow, forward and backward

{table(flow_rows(reports, backward=True))}

## Losses and scans

{table(other_rows(reports))}

## What matters in an update of a 7B model

262144 tokens, Q = W = 64, bfloat16 coefficients. The policy's forward and backward passes, at 40 %
of the tensor cores' rate, take {shown}; rollout not
counted.

{table(step_rows(reports), step_header)}

No op's time is noticed in an update, with our kernels; eager's flow at K = 8 is the only one that
comes near a percent. What is noticed is memory: for its backward pass eager keeps two tensors of
[R, Q, W] per step, which at K = 8 and this size leaves no room for a model on an A100 or H100 of
80 GB, so that it has to run in pieces; and, for trainers that loop over tokens in Python, the
launches, which a scan replaces by one.
"""


if __name__ == "__main__":
    from kernels import gpu_code

    found = gpu_code.reports(quick=True)
    (Path(__file__).parent / "roofline.md").write_text(document(found))
