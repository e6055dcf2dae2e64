"""Times the ops on a GPU and writes bench/results/<gpu>.json: ``make gpu-check``.

Ours beside eager PyTorch and ``torch.compile`` at the sizes of bench/roofline.md; a result is
compared with the reference before it is timed. Times are medians over events of the GPU's own
clock. Bandwidth and rate of silus are those of our kernels; the share of the roofline is the floor
of bench/roofline.py at this GPU's rates over the time, null for a GPU whose rates are not listed.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cases
import roofline
import torch

import dfpo_kernels
from dfpo_kernels import FlowField

RESULTS = Path(__file__).parent / "results"
FLOW_SIZES = [(32_768, 64, 64, 1), (32_768, 64, 64, 8), (262_144, 64, 64, 8), (32_768, 200, 128, 8)]
SCAN_SIZES = [(64, 1024, 32), (512, 4096, 1), (64, 4096, 64), (8, 32_768, 1)]
HUBER_SIZES = [(32_768, 64, 64), (32_768, 200, 200)]


def milliseconds(run: Callable, *args: object, rounds: int = 20) -> float | None:
    """Median of a call run(*args); null where it does not fit into memory."""
    try:
        for _ in range(3):
            run(*args)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
        for start, end in events:
            start.record()
            run(*args)
            end.record()
        torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
    return statistics.median(start.elapsed_time(end) for start, end in events)


def flow_inputs(rows: int, num_quantiles: int, width: int, dtype: torch.dtype) -> list:
    field = [t.to("cuda", dtype) for t in cases.make_field(rows, width, False)]
    return [t.requires_grad_() for t in (*field, torch.randn(rows, num_quantiles, device="cuda"))]


def rates_here(work: roofline.Work | None, time: float | None) -> dict[str, float | None]:
    name = torch.cuda.get_device_name()
    device = next((d for d in roofline.DEVICES if d.name in name), None)
    if work is None or time is None:
        return {"bandwidth_GB_s": None, "roofline_share": None}
    share = None if device is None else device.seconds(work)[0] / (time * 1e-3)
    return {"bandwidth_GB_s": work.bytes / time * 1e-6, "roofline_share": share}


def flow_records(reports: list[dict]):
    major, minor = torch.cuda.get_device_capability()
    target = f"sm_{major}{minor}"
    for size in FLOW_SIZES:
        rows, num_quantiles, width, steps = size
        for dtype, branch in ((torch.float32, "exact"), (torch.bfloat16, "approximate")):
            inputs = flow_inputs(rows, num_quantiles, width, dtype)

            def forward(function, inputs=inputs, steps=steps):
                return function(FlowField(*inputs[:5]), inputs[5], steps)

            def ours(field, base, steps):
                return dfpo_kernels.integrate_flow(field, base, steps=steps)

            def both(function, inputs=inputs, forward=forward):
                return torch.autograd.grad(forward(function).sum(), inputs)

            with torch.no_grad():
                check = [t[:256] if t.dim() > 1 else t for t in inputs]
                check[2] = check[2][:256]
                actual = ours(FlowField(*check[:5]), check[5], steps)
                double = [t.double() for t in check]
                law = dfpo_kernels.reference.integrate_flow(
                    FlowField(*double[:5]), double[5], steps=steps
                )
                error = ((actual - law).abs().max() / law.abs().max()).item()
            assert error < (1e-4 if dtype == torch.float32 else 3e-2), f"wrong by {error}"
            compiled = torch.compile(cases.euler)
            for backward, run in ((False, forward), (True, both)):
                providers = {"ours": ours, "eager": cases.euler, "compile": compiled}
                times = {}
                for name, function in providers.items():
                    with torch.set_grad_enabled(backward):
                        times[name] = milliseconds(run, function)
                known = target in {r["target"] for r in reports}
                work = (
                    roofline.integrate(reports, target, branch, size, backward) if known else None
                )
                evaluations = rows * num_quantiles * width * steps
                yield {
                    "op": "integrate_flow" + (" forward+backward" if backward else " forward"),
                    "size": dict(zip("RQWK", size, strict=True)),
                    "dtype": str(dtype).removeprefix("torch."),
                    "milliseconds": times,
                    "evaluations_per_second": evaluations / times["ours"] * 1e3,
                    **rates_here(work, times["ours"]),
                    "error": error,
                }


def loss_and_gradients(function, quantiles, targets):
    return torch.autograd.grad(function(quantiles, targets).sum(), (quantiles, targets))


def huber_records():
    for rows, num_quantiles, num_targets in HUBER_SIZES:
        quantiles = torch.randn(rows, num_quantiles, device="cuda", requires_grad=True)
        targets = torch.randn(rows, num_targets, device="cuda", requires_grad=True)
        peer = dfpo_kernels.reference.quantile_huber_loss
        providers = {
            "ours": dfpo_kernels.quantile_huber_loss, "eager": peer, "compile": torch.compile(peer),
        }  # fmt: skip
        law = peer(quantiles[:64].double(), targets[:64].double())
        error = (providers["ours"](quantiles[:64], targets[:64]) - law).abs().max().item()
        assert error < 1e-4, f"wrong by {error}"
        times = {
            name: milliseconds(loss_and_gradients, function, quantiles, targets)
            for name, function in providers.items()
        }
        work, _ = roofline.huber(rows, num_quantiles, num_targets)
        yield {
            "op": "quantile_huber_loss forward+backward",
            "size": {"R": rows, "Q": num_quantiles, "P": num_targets},
            "dtype": "float32",
            "milliseconds": times,
            "evaluations_per_second": rows * num_quantiles * num_targets / times["ours"] * 1e3,
            **rates_here(work, times["ours"]),
            "error": error,
        }


def scan_records():
    for count, length, num_quantiles in SCAN_SIZES:
        rewards = torch.randn(count, length, device="cuda")
        values = torch.randn(count, length, num_quantiles, device="cuda")
        mask = torch.ones(count, length, dtype=torch.bool, device="cuda")
        options = {"gamma": 1.0, "lam": 0.95}
        for op, more in (("distributional_gae", {}), ("lambda_mixture_targets", {"seed": 1})):
            function = getattr(dfpo_kernels, op)
            peer = getattr(dfpo_kernels.reference, op)
            with torch.no_grad():
                part = (rewards[:2, :300], values[:2, :300], mask[:2, :300])
                one, other = (f(*part, **options, **more) for f in (function, peer))
                one, other = (x[0] if isinstance(x, tuple) else x for x in (one, other))
                error = (one - other).abs().max().item()
                assert error < 1e-2, f"wrong by {error}"

                inputs = (rewards, values, mask)
                times = {
                    "ours": milliseconds(partial(function, **options, **more), *inputs),
                    # A Python loop over tokens: three rounds are enough, and nobody compiles it.
                    "eager": milliseconds(partial(peer, **options, **more), *inputs, rounds=3),
                    "compile": None,
                    "clone": milliseconds(values.clone),
                }
            work, _ = roofline.scan(op, count * length, num_quantiles)
            yield {
                "op": op,
                "size": {"B": count, "T": length, "Q": num_quantiles},
                "dtype": "float32",
                "milliseconds": times,
                "evaluations_per_second": count * length * num_quantiles / times["ours"] * 1e3,
                **rates_here(work, times["ours"]),
                "error": error,
            }


def main() -> None:
    from kernels import gpu_code

    name = torch.cuda.get_device_name()
    reports = gpu_code.reports(quick=True)
    records = [*flow_records(reports), *huber_records(), *scan_records()]
    import triton

    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{re.sub('[^A-Za-z0-9]+', '-', name).strip('-').lower()}.json"
    versions = {
        "torch": torch.__version__, "cuda": torch.version.cuda, "triton": triton.__version__,
    }  # fmt: skip
    text = json.dumps({"gpu": name, **versions, "records": records}, indent=1)
    path.write_text(text + "\n")
    print(text)
    print(path)


if __name__ == "__main__":
    main()
