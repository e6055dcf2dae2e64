"""One small case of every kernel, forward and backward, for compute-sanitizer; with ``--cuda`` the
CUDA kernels alone; with ``--heavy`` one launch of the heaviest kernels at full size, for ncu."""

from __future__ import annotations

import sys

import torch
from card import DEVICE, DRY, keep, synchronize

import dfpo_kernels
from dfpo_kernels import FlowField


def leaves(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(shape, device=DEVICE, requires_grad=True) for shape in shapes]


def flow(rows: int, num_quantiles: int, width: int, steps: int, method: str) -> None:
    shapes = [(rows, width), (rows, width), (rows,), (width,), (width,), (rows, num_quantiles)]
    *field, base = leaves(*shapes)
    out = dfpo_kernels.integrate_flow(FlowField(*field), base, steps=steps, method=method)
    out.sum().backward()


def consistency(rows: int, num_quantiles: int, width: int) -> None:
    shapes = [(rows, width), (rows, width), (rows,), (width,), (width,), (rows, num_quantiles)]
    *field, base = leaves(*shapes)
    dfpo_kernels.flow_consistency_loss(FlowField(*field), base, steps=3).sum().backward()


def huber(rows: int, num_quantiles: int, num_targets: int) -> None:
    quantiles, targets = leaves((rows, num_quantiles), (rows, num_targets))
    dfpo_kernels.quantile_huber_loss(quantiles, targets).sum().backward()


def scans(count: int, length: int, num_quantiles: int) -> None:
    rewards, values = leaves((count, length), (count, length, num_quantiles))
    mask = torch.rand(count, length, device=DEVICE) < 0.9
    options = {"gamma": 0.99, "lam": 0.95}
    outputs = dfpo_kernels.distributional_gae(rewards, values, mask, **options)
    sum(out.sum() for out in outputs).backward()
    dfpo_kernels.lambda_mixture_targets(rewards, values, mask, seed=1, **options).sum().backward()


def main() -> None:
    cases = [
        lambda: scans(3, 200, 1),
        lambda: scans(3, 77, 7),
        lambda: scans(2, 33, 48),
        lambda: scans(2, 65, 200),
        lambda: scans(1, 3000, 1),
    ]
    if "--heavy" in sys.argv:
        scale = 64 if DRY else 1
        cases = [
            lambda: flow(32_768 // scale, 64, 64, 8, "euler"),
            lambda: huber(32_768 // scale, 64, 64),
            lambda: huber(32_768 // scale, 200, 200),
            lambda: scans(64, 1024 // scale, 32),
        ]
    elif "--cuda" not in sys.argv:
        cases += [
            lambda: flow(5, 33, 40, 3, "euler"),
            lambda: flow(7, 64, 64, 2, "rk4"),
            lambda: consistency(5, 33, 12),
            lambda: huber(5, 33, 40),
            lambda: huber(3, 200, 130),
            lambda: huber(3, 200, 200),
        ]
    for case in cases:
        case()
        synchronize()
    keep({"cases": len(cases)})
    print(f"{len(cases)} cases ran")


if __name__ == "__main__":
    main()
