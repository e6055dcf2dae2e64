"""Writes bench/roofline.md: what each op would cost on an A100 and an H100 at published rates.

    PYTHONPATH=tests python bench/roofline.py

Instructions per silu come from the machine code of this tree's kernels (tests/kernels/gpu_code.py),
bytes from the tensors that an op reads and writes. A time is the largest of what instruction issue,
float arithmetic, the special function unit and memory each need: a floor, never measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate


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


# NVIDIA A100 80 GB SXM and H100 SXM5 data sheets.
DEVICES = (
    Device("A100", "sm_80", 108, 1.41e9, 64, 2.039e12, 312e12),
    Device("H100", "sm_90", 132, 1.98e9, 128, 3.35e12, 989e12),
)
# Lane instructions of the inner loops that hold no silu, estimated from the source:
# a pair of quantile_huber_loss, twice with gradients of both sides; a particle of a scan.
PER_PAIR = 8
PER_PARTICLE = {"distributional_gae": 60, "lambda_mixture_targets": 160}
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


def huber(R: int, Q: int, P: int) -> tuple[Work, Eager]:
    pairs = R * Q * P
    moved = 2 * R * (Q + P) * FLOAT
    work = Work(2 * PER_PAIR * pairs, 5 * pairs, 0, moved)
    # u, |u|, the square and its half, the choice, the indicator, the weight and the product, each
    # written and most of them read, forward; about as much again backward.
    return work, Eager(32 * pairs * FLOAT, 6 * pairs * FLOAT)


def scan(op: str, R: int, Q: int) -> tuple[Work, Eager]:
    outputs = 2 if op == "distributional_gae" else 1
    moved = R * (FLOAT + 1) + R * Q * FLOAT * (1 + outputs)
    work = Work(PER_PARTICLE[op] * R * Q, 10 * R * Q, 0, moved)
    # A loop over tokens: 8 operations of two reads and a write each.
    return work, Eager(24 * R * Q * FLOAT, moved)


def show(number: float, units: str = "B") -> str:
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}{units}".strip()
    return f"{number:.3g} {units}".strip()


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"


def row(name: str, size: str, works: dict[str, Work], eager: Eager) -> list[str]:
    cells = [name, size, show(works["sm_90"].instructions, ""), show(works["sm_90"].bytes)]
    for device in DEVICES:
        seconds, limit = device.seconds(works[device.target])
        cells += [f"{milliseconds(seconds)} {limit}"]
    # Eager is bound by memory; its kernels reach the published bandwidth at best.
    cells += [milliseconds(eager.traffic / d.bandwidth) for d in DEVICES]
    return [*cells, show(eager.traffic), show(eager.memory)]


HEADER = [
    "op", "size", "lane instructions", "bytes", "A100, ms", "H100, ms", "eager A100, ms",
    "eager H100, ms", "eager traffic", "eager memory",
]  # fmt: skip
SIZES = [
    (R, Q, W, K)
    for R in (32_768, 262_144, 1_048_576)
    for Q, W in ((32, 64), (64, 64), (200, 128))
    for K in (1, 8)
]


def flow_rows(reports: list[dict], backward: bool) -> Iterator[list[str]]:
    for size in SIZES:
        for branch in ("exact", "approximate"):
            works = {
                d.target: integrate(reports, d.target, branch, size, backward) for d in DEVICES
            }
            dtype = "float32" if branch == "exact" else "bfloat16"
            name = "R{} Q{} W{} K{}".format(*size)
            yield row(dtype, name, works, integrate_eager(size, backward))


def other_rows() -> Iterator[list[str]]:
    for R in (32_768, 262_144, 1_048_576):
        for Q in (32, 64, 200):
            work, eager = huber(R, Q, Q)
            works = {device.target: work for device in DEVICES}
            yield row("quantile_huber_loss, both gradients", f"R{R} Q{Q} Q'{Q}", works, eager)
        for op in PER_PARTICLE:
            for Q in (1, 64):
                work, eager = scan(op, R, Q)
                works = {device.target: work for device in DEVICES}
                yield row(op, f"tokens {R} Q{Q}", works, eager)


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
            ("quantile_huber_loss, Q'=64", huber(R, Q, Q)),
            ("distributional_gae", scan("distributional_gae", R, Q)),
            ("lambda_mixture_targets", scan("lambda_mixture_targets", R, Q)),
        ):
            yield line(name, device.seconds(work)[0], eager)


def document(reports: list[dict]) -> str:
    def table(rows, header=HEADER):
        return tabulate(rows, header, tablefmt="github", disable_numparse=True)

    update = [update_seconds(device) for device in DEVICES]
    step_header = ["GPU", "op", "ms", "share of the update", "eager's share", "eager's memory"]
    return f"""# Roofline

Made by `PYTHONPATH=tests python bench/roofline.py`. Nothing here was measured on a GPU. Each time
is a floor: the largest of what instruction issue, float arithmetic, the special function unit and
memory need at published rates (A100 80 GB SXM, H100 SXM5); the word after it says which. The
instructions of a silu are counted in the machine code of the kernels' inner loops; those of the ops
without a silu are estimates from the source. Eager is PyTorch, operation by operation, taken to run
at the full bandwidth: a floor too. R token rows, Q quantiles, W flow width, K euler steps;
particles float32, base shared.

## integrate_flow, forward

{table(flow_rows(reports, backward=False))}

## integrate_flow, forward and backward

{table(flow_rows(reports, backward=True))}

## Losses and scans

{table(other_rows())}

## What matters in an update of a 7B model

262144 tokens, Q = W = 64, bfloat16 coefficients. The policy's forward and backward passes, at 40 %
of the tensor cores' rate, take {update[0]:.1f} s on an A100 and {update[1]:.1f} s on an H100;
rollout not counted.

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
