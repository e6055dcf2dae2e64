"""Prints what is proved of the GPU kernels without a GPU, one row per kernel and branch, and ends
with status 1 if a bound is broken: ``make gpu-proof``.

The code comes from the compilers (gpu_code.py). The error is the largest over value or gradients,
relative to the largest expected, against float64: of the Triton kernels on the interpreter, of the
CUDA kernels on the emulation in three thread orders.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Before triton is imported; where this file is imported, its importer has chosen.
if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"

import torch  # noqa: E402
from kernels import gpu_code  # noqa: E402
from kernels.scans import double, make_scan  # noqa: E402
from kernels.stand_ins import (  # noqa: E402
    compile_emulation,
    cuda_answers,
    load,
    triton_answers,
)
from tabulate import tabulate  # noqa: E402

import dfpo_kernels  # noqa: E402
from dfpo_kernels import FlowField, reference  # noqa: E402
from dfpo_kernels.flow_consistency_loss import (  # noqa: E402
    triton_kernel as consistency_kernel,
)
from dfpo_kernels.integrate_flow import triton_kernel  # noqa: E402
from dfpo_kernels.quantile_huber_loss import triton_kernel as huber_kernel  # noqa: E402

# Of float32 inputs. The approximate branch is for bfloat16 and float16 coefficients.
MOST_ERROR = {None: 1e-5, "exact": 1e-5, "approximate": 1e-2}


def errors(run: Callable, tensors: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative error of the value, and of the gradient of each tensor by its name."""
    results = []
    for ops, dtype in ((dfpo_kernels, torch.float32), (reference, torch.float64)):
        leaves = {name: t.detach().to(dtype).requires_grad_() for name, t in tensors.items()}
        outputs = run(ops, leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum(out.square().sum() for out in outputs).backward()
        grads = {name: leaf.grad for name, leaf in leaves.items()}
        results.append({"value": torch.cat([out.flatten() for out in outputs])} | grads)
    own, expected = results
    return {
        name: (
            (own[name].double() - expected[name]).abs().max() / expected[name].abs().max()
        ).item()
        for name in own
        if expected[name] is not None
    }


def field_of(tensors: dict[str, torch.Tensor]) -> FlowField:
    return FlowField(*(tensors[name] for name in FlowField._fields))


def interpreter_errors() -> dict[str, float]:
    """Per kernel, the worst over methods."""
    rows, num_quantiles, width = 5, 33, 12
    torch.manual_seed(0)
    flow = {
        "bias": torch.randn(rows, width), "gain": torch.randn(rows, width) / width**0.5,
        "offset": torch.randn(rows), "z_weight": torch.randn(width),
        "time_weight": torch.randn(width), "base": torch.randn(rows, num_quantiles),
        "time": torch.rand(rows),
    }  # fmt: skip
    pair = {"quantiles": torch.randn(rows, 33), "targets": torch.randn(rows, 21)}
    worst: dict[str, float] = {}

    def note(kernel: str, found: dict[str, float], *names: str) -> None:
        worst[kernel] = max([worst.get(kernel, 0.0), *(found[name] for name in names)])

    found = errors(lambda ops, t: ops.flow_velocity(field_of(t), t["base"], t["time"]), flow)
    note("velocity_kernel", found, "value")
    note("velocity_adjoint_kernel", found, "base", "offset")
    note("coefficients_kernel", found, "bias", "gain", "z_weight", "time_weight", "time")
    for method in triton_kernel.METHODS:
        options = {"steps": 2, "method": method}
        found = errors(
            lambda ops, t, options=options: ops.integrate_flow(
                field_of(t), t["base"], end=t["time"], trajectory=True, **options
            ),
            flow,
        )
        note("integrate_kernel", found, "value")
        note("adjoint_kernel", found, "base", "offset", "time")
        note("coefficients_kernel", found, "bias", "gain", "z_weight", "time_weight")
        found = errors(
            lambda ops, t, options=options: ops.flow_consistency_loss(
                field_of(t), t["base"], **options
            ),
            flow,
        )
        note("flow_consistency_kernel", found, "value")
    for kappa in (0.05, 0.0):
        found = errors(
            lambda ops, t, kappa=kappa: ops.quantile_huber_loss(
                t["quantiles"], t["targets"], kappa=kappa
            ),
            pair,
        )
        note("quantile_huber_kernel", found, "value", "quantiles", "targets")
        least, huber_kernel.LEAST_LONG = huber_kernel.LEAST_LONG, 2
        found = errors(
            lambda ops, t, kappa=kappa: ops.quantile_huber_loss(
                t["quantiles"], t["targets"], kappa=kappa
            ),
            pair,
        )
        huber_kernel.LEAST_LONG = least
        note("quantile_huber_sorted_kernel", found, "value", "quantiles", "targets")
    return worst


def emulation_errors(width: str) -> dict[str, float]:
    worst: dict[str, float] = {}

    def note(kernel: str, *errors: float) -> None:
        worst[kernel] = max(worst.get(kernel, 0.0), *errors)

    for path, num_quantiles in (("staged", 3), ("direct", 40)):
        inputs = make_scan(3, 200, num_quantiles)
        floats = ("rewards", "quantiles", "bootstrap")
        flags = {name: x for name, x in double(inputs).items() if name not in floats}
        tensors = {name: inputs[name] for name in floats}
        scans = {
            "Gae": lambda ops, t, flags=flags: ops.distributional_gae(
                **t, **flags, gamma=0.99, lam=0.95
            ),
            "Mixture": lambda ops, t, flags=flags: ops.lambda_mixture_targets(
                **t, **flags, gamma=0.99, lam=0.95, seed=5
            ),
        }
        for scan, run in scans.items():
            for order in ("0", "1", "7"):
                os.environ["DFPO_EMULATION_ORDER"] = order
                found = errors(run, tensors)
                value, gradients = (
                    f"<{scan}{pass_}, {path}{width}>" for pass_ in ("Scan", "GradScan")
                )
                note(f"scan_kernel{value}", found.pop("value"))
                note(f"scan_kernel{gradients}", *found.values())
                if scan == "Mixture":
                    # Wrong counts draw other bits.
                    note("count_kernel<MixtureScan>", worst[f"scan_kernel{value}"])
                    note("count_kernel<MixtureGradScan>", worst[f"scan_kernel{gradients}"])
    return worst


def measure_errors() -> dict[tuple[str, str | None], float]:
    """By kernel and branch."""
    with triton_answers():
        exact = interpreter_errors()
        branch = triton_kernel.sigmoid_of
        for room in (triton_kernel, consistency_kernel):
            room.sigmoid_of = lambda field: "rounded"
        approximate = interpreter_errors()
        for room in (triton_kernel, consistency_kernel):
            room.sigmoid_of = branch
    cuda = {}
    for width, flags in (("", ()), (" wide", ("-DDFPO_ENOUGH_BLOCKS=0",))):
        with tempfile.TemporaryDirectory() as folder:
            module = load(compile_emulation(Path(folder), *flags).values(), Path(folder))
            with cuda_answers(module):
                cuda |= emulation_errors(width)
    no_silu = {kernel for kernel in exact if kernel.startswith("quantile_huber")}
    table = {(kernel, None if kernel in no_silu else "exact"): e for kernel, e in exact.items()}
    table |= {(k, "approximate"): e for k, e in approximate.items() if k not in no_silu}
    return table | {(kernel, None): error for kernel, error in cuda.items()}


def main() -> int:
    broken = []
    measured = measure_errors()
    groups: dict[tuple[str, str | None], list[dict]] = {}
    for report in gpu_code.reports():
        groups.setdefault((report["kernel"], report["branch"]), []).append(report)
        where = f"{report['kernel']} {report['method'] or ''} {report['target']}"
        broken += [f"{where}: {failure}" for failure in gpu_code.failures(report)]
    rows = []
    for (kernel, branch), group in groups.items():
        targets = [name for name in gpu_code.TARGETS if any(r["target"] == name for r in group)]

        def cell(name, group=group, targets=targets):
            """Per target, the worst over methods."""
            worst = [
                max(
                    (r[name] for r in group if r["target"] == t and r.get(name) is not None),
                    default="-",
                )
                for t in targets
            ]
            return str(worst[0]) if len(set(worst)) == 1 else " / ".join(map(str, worst))

        error = measured[kernel, branch]
        if not error <= MOST_ERROR[branch]:
            broken.append(f"{kernel} {branch or ''}: error is {error:.1e}")
        rows.append(
            [kernel, branch or "", " ".join(targets).replace("sm_", ""), cell("registers"),
             cell("stack"), cell("spills"), cell("shared"), cell("per_silu"), f"{error:.0e}"]
        )  # fmt: skip
    broken += [
        f"{' '.join(filter(None, key))}: was not compiled" for key in measured.keys() - groups
    ]
    header = ["kernel", "branch", "targets", "registers", "stack", "spills", "shared", "per silu"]
    print(tabulate(rows, [*header, "error"], tablefmt="github", disable_numparse=True))
    if not shutil.which("nvcc"):
        broken.append("no nvcc: the CUDA kernels were not compiled")
    for line in broken:
        print(f"BROKEN {line}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
