"""Every op beside eager PyTorch, ``torch.compile`` and a copy: from cold caches by events, and by
replays of a graph. A result is compared with the float64 reference before it is timed.

A record is written as soon as it is there. ``torch.compile``, which takes half a minute to compile,
comes last and adds its time to the records of the first size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain

import cases
import torch
from card import DEVICE, DRY, graph_milliseconds, keep, milliseconds
from silu_rate import silu_rates

import dfpo_kernels
from dfpo_kernels import FlowField, reference

# R token rows, Q quantiles, W width, K steps; the first of each is compared with torch.compile.
FLOW_SIZES = [(32_768, 64, 64, 8), (262_144, 64, 64, 8), (32_768, 64, 64, 1), (32_768, 200, 128, 8)]
SCAN_SIZES = [(64, 1024, 32), (512, 4096, 1), (64, 4096, 64), (1, 131_072, 1), (8, 32_768, 1)]
HUBER_SIZES = [(32_768, 64, 64), (32_768, 200, 200), (32_768, 32, 32)]
if DRY:
    FLOW_SIZES, SCAN_SIZES, HUBER_SIZES = [(8, 5, 6, 2)], [(2, 9, 3), (1, 50, 1)], [(4, 5, 6)]
# Most relative error of a value against float64, by dtype of the coefficients.
MOST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


def graph_time(run: Callable[[], object]) -> float | str:
    """Milliseconds, or why the call cannot be captured."""
    try:
        return graph_milliseconds(run)
    except RuntimeError as error:
        return str(error).splitlines()[0][:200]


def times_of(ours: Callable[[], object], eager: Callable[[], object] | None) -> dict:
    return {
        "milliseconds": {"ours": milliseconds(ours), "eager": eager and milliseconds(eager)},
        "graph_milliseconds": graph_time(ours),
    }


def compiled(function: Callable) -> Callable:
    return torch.compile(function, backend="eager" if DRY else "inductor")


# A record, and the same call by torch.compile where that is to be timed.
Measured = tuple[dict, Callable[[], object] | None]


def flow_records(rates: dict[str, float]) -> Iterator[Measured]:
    for size in FLOW_SIZES:
        rows, num_quantiles, width, steps = size
        for dtype, branch in ((torch.float32, "exact"), (torch.bfloat16, "approximate")):
            field = [t.to(DEVICE, dtype) for t in cases.make_field(rows, width, False)]
            inputs = [*field, torch.randn(rows, num_quantiles, device=DEVICE)]
            inputs = [t.detach().requires_grad_() for t in inputs]

            def ours(*inputs, steps=steps):
                return dfpo_kernels.integrate_flow(FlowField(*inputs[:5]), inputs[5], steps=steps)

            def eager(*inputs, steps=steps):
                return cases.euler(FlowField(*inputs[:5]), inputs[5], steps)

            head = [
                t.detach()[:256] if i not in (3, 4) else t.detach() for i, t in enumerate(inputs)
            ]
            double = [t.double() for t in head]
            expected = reference.integrate_flow(FlowField(*double[:5]), double[5], steps=steps)
            error = relative_error(ours(*head), expected)
            assert error < MOST_ERROR[dtype], f"integrate_flow {size} {dtype}: off by {error}"

            plain = [t.detach() for t in inputs]

            def gradients(function, inputs=inputs):
                return torch.autograd.grad(function(*inputs).sum(), inputs)

            # A unit costs the forward pass one evaluation, the backward pass two more.
            floor = 1e3 * rows * num_quantiles * width * steps / rates.get(branch, rates["exact"])
            for suffix, evaluations, call in (
                ("forward", 1, lambda f, plain=plain: f(*plain)),
                ("forward+backward", 3, gradients),
            ):
                record = {
                    "op": f"integrate_flow {suffix}",
                    "size": "R{} Q{} W{} K{}".format(*size),
                    "dtype": str(dtype).removeprefix("torch."),
                    **times_of(partial(call, ours), partial(call, eager)),
                    "floor_milliseconds": evaluations * floor,
                    "floor": "measured rate of silu",
                    "error": error,
                }
                first = size == FLOW_SIZES[0]
                yield record, partial(call, compiled(eager)) if first else None


def huber_records() -> Iterator[Measured]:
    for rows, num_quantiles, num_targets in HUBER_SIZES:
        quantiles = torch.randn(rows, num_quantiles, device=DEVICE, requires_grad=True)
        targets = torch.randn(rows, num_targets, device=DEVICE, requires_grad=True)
        peer = reference.quantile_huber_loss
        expected = peer(quantiles[:64].double(), targets[:64].double()).detach()
        error = relative_error(
            dfpo_kernels.quantile_huber_loss(quantiles[:64], targets[:64]), expected
        )
        assert error < 1e-4, f"quantile_huber_loss: off by {error}"

        def gradients(function, quantiles=quantiles, targets=targets):
            loss = function(quantiles, targets).sum()
            return torch.autograd.grad(loss, (quantiles, targets))

        ours = partial(gradients, dfpo_kernels.quantile_huber_loss)
        record = {
            "op": "quantile_huber_loss forward+backward",
            "size": f"R{rows} Q{num_quantiles} P{num_targets}",
            "dtype": "float32",
            **times_of(ours, partial(gradients, peer)),
            "error": error,
        }
        first = num_quantiles == HUBER_SIZES[0][1]
        yield record, partial(gradients, compiled(peer)) if first else None


def scan_records() -> Iterator[Measured]:
    for count, length, num_quantiles in SCAN_SIZES:
        rewards = torch.randn(count, length, device=DEVICE)
        values = torch.randn(count, length, num_quantiles, device=DEVICE)
        mask = torch.ones(count, length, dtype=torch.bool, device=DEVICE)
        options = {"gamma": 1.0, "lam": 0.95}
        for op, outputs, more in (
            ("distributional_gae", 2, {}),
            ("lambda_mixture_targets", 1, {"seed": 1}),
        ):
            function, peer = getattr(dfpo_kernels, op), getattr(reference, op)
            part = [t[:2, :200] for t in (rewards, values, mask)]
            actual, expected = (
                function(*part, **options, **more),
                peer(part[0].double(), part[1].double(), part[2], **options, **more),
            )
            if outputs == 2:
                actual, expected = actual[0], expected[0]
            error = relative_error(actual, expected)
            assert error < 1e-3, f"{op}: off by {error}"
            run = partial(function, rewards, values, mask, **options, **more)
            # As many bytes as the op must read and write: its inputs once, its outputs once.
            moved = values.nbytes * (1 + outputs) + rewards.nbytes + mask.nbytes
            block = torch.empty(moved // 2, dtype=torch.uint8, device=DEVICE)
            target = torch.empty_like(block)
            copy = milliseconds(partial(target.copy_, block))
            # The reference is a Python loop over tokens; the mixture's and a long one take seconds.
            loop = op == "distributional_gae" and length <= 1024
            slow = partial(peer, rewards, values, mask, **options, **more) if loop else None
            record = {
                "op": op,
                "size": f"B{count} T{length} Q{num_quantiles}",
                "dtype": "float32",
                **times_of(run, slow),
                "floor_milliseconds": copy,
                "floor": "a copy of the same bytes",
                "error": error,
            }
            yield record, None


def main() -> None:
    rates = silu_rates()
    records: list[dict] = []
    later: list[Measured] = []
    for record, peer in chain(scan_records(), huber_records(), flow_records(rates)):
        records.append(record)
        keep({"silu_per_second": rates, "records": records})
        print(record, flush=True)
        if peer:
            later.append((record, peer))
    for record, peer in later:
        record["milliseconds"]["compile"] = milliseconds(peer)
        keep({"silu_per_second": rates, "records": records})
        print(record["op"], record["size"], record["milliseconds"], flush=True)


if __name__ == "__main__":
    main()
