"""200 shapes of any size, against eager PyTorch; then the shortest calls.

    python bench/short_cases.py [SHAPES]

Processor time of one thread, the least of some rounds in turn. Then what a call of ours costs
beside the cheapest chain of PyTorch calls that gives the same number, which is to be at most 1.5
times as much; last the shapes where eager is faster, which are to be none.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from tabulate import tabulate

import dfpo_kernels as kernels
from dfpo_kernels import FlowField

# Work of a shape, in multiplications of an eager formula: what is larger takes seconds.
MOST_WORK = 3e6
SCAN = {"gamma": 0.99, "lam": 0.95}


@dataclass(frozen=True)
class Shape:
    rows: int
    tokens: int
    quantiles: int
    width: int
    steps: int


def draw(random_: random.Random) -> Shape:
    def size(most: int) -> int:
        return int(most ** random_.random())

    return Shape(size(512), size(256), size(128), size(128), size(8))


def field(shape: Shape) -> FlowField:
    r, w = shape.rows, shape.width
    return FlowField(
        torch.randn(r, w), torch.randn(r, w), torch.randn(r), torch.randn(w), torch.randn(w)
    )


def flow_velocity(shape: Shape) -> Callable:
    f, z = field(shape), torch.randn(shape.rows, shape.quantiles)
    return lambda ops: ops.flow_velocity(f, z, torch.tensor(0.3))


def integrate_flow(shape: Shape) -> Callable:
    f, z = field(shape), torch.randn(shape.rows, shape.quantiles)
    start, end = torch.tensor(0.0), torch.tensor(1.0)
    return lambda ops: ops.integrate_flow(f, z, steps=shape.steps, start=start, end=end)


def flow_consistency_loss(shape: Shape) -> Callable:
    f, z = field(shape), torch.randn(shape.rows, shape.quantiles)
    return lambda ops: ops.flow_consistency_loss(f, z, steps=shape.steps)


def quantile_huber_loss(shape: Shape) -> Callable:
    q, targets = (torch.randn(shape.rows, shape.quantiles) for _ in range(2))
    return lambda ops: ops.quantile_huber_loss(q, targets, kappa=1.0)


def distributional_gae(shape: Shape) -> Callable:
    lead = (shape.rows, shape.tokens)
    rewards, values, mask = torch.randn(lead), torch.randn(*lead, shape.quantiles), torch.ones(lead)
    return lambda ops: ops.distributional_gae(rewards, values, mask, **SCAN)


OPS = (
    flow_velocity,
    integrate_flow,
    flow_consistency_loss,
    quantile_huber_loss,
    distributional_gae,
)


def work(op: Callable, shape: Shape) -> float:
    per_row = {
        "flow_velocity": shape.quantiles * shape.width,
        "integrate_flow": shape.quantiles * shape.width * shape.steps,
        "flow_consistency_loss": shape.quantiles * shape.width * (shape.steps + 1),
        "quantile_huber_loss": shape.quantiles**2,
        "distributional_gae": shape.quantiles * shape.tokens,
    }[op.__name__]
    return per_row * shape.rows


def least(calls: dict[str, Callable], seconds: float = 0.04) -> dict[str, float]:
    """Microseconds of processor time of each, the least of rounds in turn."""
    counts = {name: repeats(call) for name, call in calls.items()}
    fewest = dict.fromkeys(calls, float("inf"))
    until = time.process_time() + seconds * len(calls)
    while time.process_time() < until:
        for name, call in calls.items():
            began = time.process_time()
            for _ in range(counts[name]):
                call()
            spent = (time.process_time() - began) / counts[name]
            fewest[name] = min(fewest[name], 1e6 * spent)
    return fewest


def repeats(call: Callable) -> int:
    """Calls that take some half a millisecond, at least one: less than a slice of the scheduler."""
    call()
    began = time.process_time()
    call()
    return max(1, int(5e-4 / max(time.process_time() - began, 1e-6)))


def sweep(shapes: int) -> list[tuple]:
    random_, rows = random.Random(0), []
    while len(rows) < shapes:
        op, shape = OPS[len(rows) % len(OPS)], draw(random_)
        if work(op, shape) > MOST_WORK:
            continue
        call = op(shape)
        took = least({"ours": partial(call, kernels), "eager": partial(call, kernels.reference)})
        rows.append((op.__name__, shape, took["ours"], took["eager"]))
    return rows


def shortest_calls() -> dict[str, tuple[list[torch.Tensor], Callable, Callable]]:
    """R = T = Q = 1: inputs, our call, and the fewest PyTorch calls that give the same number."""
    one = Shape(1, 1, 1, 1, 1)
    f, shortcut = field(one), field(one)
    z, other, mask = torch.randn(1, 1), torch.randn(1, 1), torch.ones(1, 1)
    token, bootstrap = torch.randn(1, 1, 1), torch.randn(1, 1)

    def velocity(field: FlowField):
        bias, gain, offset, z_weight, _ = field
        x = torch.addcmul(bias, z, z_weight)
        return torch.addcmul(offset, gain, torch.nn.functional.silu(x))

    return {
        "flow_velocity": (
            [*f[:4], z],
            lambda: kernels.flow_velocity(f, z, 0.0),
            lambda: velocity(f),
        ),
        "integrate_flow": (
            [*f[:4], z],
            lambda: kernels.integrate_flow(f, z, steps=1),
            lambda: z + velocity(f),
        ),
        "flow_consistency_loss": (
            [*shortcut[:4]],
            lambda: kernels.flow_consistency_loss(f, z, shortcut=shortcut, steps=1),
            lambda: (velocity(shortcut) - velocity(f))[0].square(),
        ),
        "quantile_huber_loss": (
            [z],
            lambda: kernels.quantile_huber_loss(z, other, kappa=1.0),
            # The one quantile is the median, so both sides weigh a half.
            lambda: torch.nn.functional.huber_loss(z, other, reduction="none")[0] * 0.5,
        ),
        # Of one token nothing follows: A = r - z, and the target is z + A = r.
        "distributional_gae": (
            [z, token],
            lambda: kernels.distributional_gae(z, token, mask, **SCAN),
            lambda: (z.unsqueeze(-1) - token, z.unsqueeze(-1)),
        ),
        # Whether the one token follows or bootstraps, it comes to the same value.
        "lambda_mixture_targets": (
            [z, bootstrap],
            lambda: kernels.lambda_mixture_targets(
                z, token, mask, **SCAN, seed=0, bootstrap=bootstrap
            ),
            lambda: torch.add(z, bootstrap, alpha=SCAN["gamma"]).unsqueeze(-1),
        ),
    }


def backward_too(call: Callable) -> Callable:
    def run() -> None:
        outputs = call()
        total = outputs[0] if isinstance(outputs, tuple) else outputs
        total.backward(torch.ones_like(total))

    return run


def one_of_all() -> list[tuple]:
    """Microseconds of ours and of the chain: without a gradient, recorded, and with backward."""
    rows = []
    for name, (inputs, ours, chain) in shortest_calls().items():
        torch.testing.assert_close(ours(), chain(), msg=lambda m, name=name: f"{name}: {m}")
        row = [name]
        with torch.no_grad():
            took = least({"ours": ours, "chain": chain}, seconds=0.3)
        row += took.values()

        for tensor in inputs:
            tensor.requires_grad_()
        for calls in ((ours, chain), (backward_too(ours), backward_too(chain))):
            took = least(dict(zip(("ours", "chain"), calls, strict=True)), seconds=0.3)
            row += took.values()
        rows.append(tuple(row))
    return rows


def floors() -> dict[str, float]:
    """What no call of ours can beat: a call into C++, and the smallest of PyTorch."""
    z = torch.randn(1, 1)
    calls = {
        "an empty call": torch.is_grad_enabled,
        "torch.empty_like": partial(torch.empty_like, z),
    }
    return least({**calls, "z + z": partial(torch.add, z, z)}, seconds=0.1)


def main(shapes: int = 200) -> int:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with torch.no_grad():
        rows = sweep(shapes)

    table = []
    for op in OPS:
        ratios = sorted(eager / ours for name, _, ours, eager in rows if name == op.__name__)
        fastest = min(ours for name, _, ours, _ in rows if name == op.__name__)
        middle = ratios[len(ratios) // 2]
        table.append((op.__name__, len(ratios), ratios[0], middle, ratios[-1], fastest))
    headers = ("op", "shapes", "least eager/ours", "median", "most", "fastest call, us")
    print(tabulate(table, headers, floatfmt=".3g"))
    print()
    headers = ("R = T = Q = 1, us", "ours", "chain", "recorded", "chain", "and backward", "chain")
    shortest = one_of_all()
    print(tabulate(shortest, headers, floatfmt=".3g"))
    for name, *took in shortest:
        ratios = [ours / chain for ours, chain in zip(took[::2], took[1::2], strict=True)]
        print(f"{name}: {', '.join(f'{ratio:.2f}' for ratio in ratios)} of the chain")
    print("; ".join(f"{name} {us:.2f} us" for name, us in floors().items()))
    print()

    slower = [(name, shape, ours, eager) for name, shape, ours, eager in rows if ours > eager]
    for name, shape, ours, eager in slower:
        print(f"eager is faster: {name} {shape}: {ours:.1f} us, eager {eager:.1f}")
    print(f"{len(rows)} shapes, eager faster in {len(slower)}")
    return int(bool(slower))


if __name__ == "__main__":
    raise SystemExit(main(*map(int, sys.argv[1:])))
