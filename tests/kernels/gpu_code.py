"""What the compilers make of the GPU kernels, on a machine without a GPU.

Run as a program (``python gpu_code.py [KERNEL ...]``) it prints JSON, one record per Triton kernel,
variant and target. It runs the launchers themselves on meta tensors and compiles what they would
launch, with the specialisation that Triton's just-in-time compiler would choose. It needs a process
without TRITON_INTERPRET, hence the program.
"""

from __future__ import annotations

import collections
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dfpo_kernels.flow_consistency_loss import triton_kernel as consistency
from dfpo_kernels.integrate_flow import triton_kernel as flow
from dfpo_kernels.quantile_huber_loss import triton_kernel as huber

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
R, Q, W, K = 4096, 64, 64, 8


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def flow_field(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (
        meta(R, W, dtype=dtype), meta(R, W, dtype=dtype), meta(R, dtype=dtype),
        meta(W, dtype=dtype), meta(W, dtype=dtype),
    )  # fmt: skip


def launches(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """Calls of launchers that together launch every kernel, by the name of the report."""
    field, z, time = flow_field(dtype), meta(R, Q), meta(R, 1)
    path, weights = meta(R, K, Q), (meta(1, 1), meta(1, 1))
    calls = {
        "flow_velocity": lambda: flow.flow_velocity(*field, z, time),
        "flow_velocity_backward": lambda: flow.flow_velocity_backward(z, *field, z, time),
    }
    pair, taus = (meta(R, Q, dtype=dtype), meta(R, Q)), meta(Q)
    for kappa in (0.05, 0.0):
        calls[f"quantile_huber_loss {kappa}"] = lambda kappa=kappa: huber.quantile_huber_loss(
            *pair, taus, kappa, True, True, True
        )
    for method in flow.METHODS:
        calls[f"flow_consistency_loss {method}"] = lambda method=method: (
            consistency.flow_consistency_loss(*field, *field, z, K, method, True)
        )
        options = (K, method, False)
        calls[f"integrate_flow {method}"] = lambda options=options: flow.integrate_flow(
            *field, z, *weights, *options, True
        )
        calls[f"integrate_flow_backward {method}"] = lambda options=options: (
            flow.integrate_flow_backward(z, *field, path, time, time, False, *options, True)
        )
    return calls


class Launched(Exception):
    """Raised once a launcher's kernels are known."""


def record(call: Callable[[], object]) -> list[tuple]:
    """The kernels that a launcher launches, once each: kernel, arguments by name, warps."""
    seen: dict[object, tuple] = {}

    def run(kernel, *args, grid, warmup, num_warps, enable_fp_fusion, **constants):
        bound = inspect.signature(kernel.fn).bind(*args, **constants)
        seen.setdefault(kernel.fn.__name__, (kernel, bound.arguments, num_warps))

    original, triton.JITFunction.run = triton.JITFunction.run, run
    try:
        call()
    finally:
        triton.JITFunction.run = original
    return list(seen.values())


def compile_for(target: GPUTarget, kernel, arguments: dict, warps: int):
    """As the just-in-time compiler specialises: aligned pointers, multiples of 16, ones."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    return triton.compile(source, target=target, options=options)


def disassemble(cubin: bytes) -> tuple[dict[str, int], list[tuple[int, str]]]:
    """Resource usage, and the instructions with their addresses, NOPs left out."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run(
                [BINARIES / "cuobjdump", flag, file.name],
                capture_output=True, text=True, check=True,
            ).stdout
            for flag in ("-res-usage", "-sass")
        )  # fmt: skip
    resources = {name: int(n) for name, n in re.findall(r"(REG|STACK|SHARED):(\d+)", usage)}
    found = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^;]*);", sass)
    code = [(int(address, 16), text.strip()) for address, text in found]
    return resources, [(at, text) for at, text in code if not text.startswith("NOP")]


def innermost_loops(code: list[tuple[int, str]]) -> list[list[str]]:
    """The instructions of each loop that holds no other, from the branches that go back."""
    spans = []
    for at, text in code:
        if target := re.match(r"BRA(?:\.\S+)?\s.*?(0x[0-9a-f]+)$", text):
            first = int(target[1], 16)
            # The trap at the end of a program branches to itself.
            if first < at:
                spans.append((first, at))
    inner = [
        (a, b)
        for a, b in spans
        if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in spans)
    ]
    return [[text for at, text in code if a <= at <= b] for a, b in inner]


def per_silu(loops: list[list[str]]) -> float | None:
    """Instructions per silu of the loop that has the most of them, or None where none has any."""

    def count(loop, name):
        return sum(text.startswith(name) for text in loop)

    rates = []
    for loop in loops:
        silus = count(loop, "MUFU.TANH") or count(loop, "MUFU.EX2")
        if silus:
            rates.append(len(loop) / silus)
    return round(max(rates), 2) if rates else None


def report(compiled) -> dict[str, object]:
    if "cubin" not in compiled.asm:
        text = compiled.asm["amdgcn"]
        fields = {"registers": "vgpr_count", "spills": "vgpr_spill_count"}
        found = {name: re.search(rf"\.{field}:\s+(\d+)", text) for name, field in fields.items()}
        return {name: int(match[1]) for name, match in found.items()} | {
            "stack": int(re.search(r"\.private_segment_fixed_size:\s+(\d+)", text)[1]),
            "shared": compiled.metadata.shared,
        }
    resources, code = disassemble(compiled.asm["cubin"])
    opcodes = collections.Counter(re.match(r"[A-Z0-9_]+", text)[0] for _, text in code)
    return {
        "registers": resources["REG"],
        "stack": resources["STACK"],
        "spills": opcodes["STL"] + opcodes["LDL"],
        "shared": compiled.metadata.shared,
        "instructions": len(code),
        "stores": opcodes["STG"],
        "per_silu": per_silu(innermost_loops(code)),
    }


def reports(names: list[str]) -> Iterator[dict[str, object]]:
    for sigmoid, dtype in (("exact", torch.float32), ("approximate", torch.bfloat16)):
        flow.sigmoid_of = consistency.sigmoid_of = lambda field, sigmoid=sigmoid: sigmoid
        done = set()
        for name, call in launches(dtype).items():
            if names and name not in names:
                continue
            for kernel, arguments, warps in record(call):
                method = arguments.get("METHOD", "")
                key = kernel.fn.__name__, method
                if key in done:
                    continue
                done.add(key)
                for target_name, target in TARGETS.items():
                    if sigmoid == "approximate" and target.backend != "cuda":
                        continue
                    compiled = compile_for(target, kernel, arguments, warps)
                    yield {
                        "kernel": " ".join((kernel.fn.__name__, *([method] if method else ()))),
                        "sigmoid": sigmoid,
                        "target": target_name,
                        **report(compiled),
                    }


if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET", "0") != "1", "the interpreter compiles nothing"
    for record_ in reports(sys.argv[1:]):
        print(json.dumps(record_), flush=True)
