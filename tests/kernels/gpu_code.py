"""What the compilers make of the GPU kernels, on a machine without a GPU.

``reports()`` runs this file as a program, in a process without TRITON_INTERPRET. It calls the
Triton launchers themselves on meta tensors and compiles what they would launch, specialised as
Triton's just-in-time compiler would; and it asks ptxas about the CUDA kernels. Counts are static:
of the code, not of a run.
"""

from __future__ import annotations

import collections
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
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
ROOT = Path(__file__).parents[2]
CUDA_SOURCES = ROOT / "csrc" / "cuda"
# 168 registers leave 3 blocks of 128 threads on a multiprocessor, and need no spill.
MOST_REGISTERS = 168
# 5 blocks on a multiprocessor of an H100 and 3 of an A100, without asking for more than 48 KB.
MOST_SHARED = 44 * 1024
MOST_PER_SILU = {"exact": 19, "approximate": 14}
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
R, Q, W, K = 4096, 64, 64, 8
LONG = 512  # quantiles that are sorted


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def flow_field(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    return (
        meta(R, W, dtype=dtype), meta(R, W, dtype=dtype), meta(R, dtype=dtype),
        meta(W, dtype=dtype), meta(W, dtype=dtype),
    )  # fmt: skip


def launches(dtype: torch.dtype) -> list[Callable[[], object]]:
    """Calls of launchers that together launch every kernel by every method."""
    field, z, time = flow_field(dtype), meta(R, Q), meta(R, 1)
    path, shared, taus = meta(R, K, Q), meta(1, 1), meta(Q)
    calls = [
        partial(flow.flow_velocity, *field, z, time),
        partial(flow.flow_velocity_backward, z, *field, z, time),
    ]
    for kappa in (0.05, 0.0):
        for pair, levels in ((z, taus), (meta(R, LONG), meta(LONG))):
            calls.append(
                partial(huber.quantile_huber_loss, pair, pair, levels, kappa, True, True, True)
            )
    for method in flow.METHODS:
        options = (K, method, False)
        calls += [
            partial(flow.integrate_flow, *field, z, shared, shared, *options, True),
            partial(
                flow.integrate_flow_backward, z, *field, path, time, time, False, *options, True
            ),
            partial(consistency.flow_consistency_loss, *field, *field, z, K, method, True),
        ]
    return calls


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
        elif parameter.do_not_specialize:
            signature[parameter.name] = "i32"
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
    code = [(at, text) for at, text in instructions(sass) if not text.startswith("NOP")]
    return resources, code


def instructions(sass: str) -> list[tuple[int, str]]:
    found = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][^;]*);", sass)
    return [(int(address, 16), text.strip()) for address, text in found]


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


def per_silu(loops: list[list[str]]) -> dict[str, float]:
    """Instructions per silu of the loop that has the most of them, and how many of these are
    float arithmetic and how many go to the special function unit; nothing without a silu."""

    def count(loop, *names):
        return sum(text.startswith(names) for text in loop)

    rates = []
    for loop in loops:
        if silus := count(loop, "MUFU.TANH") or count(loop, "MUFU.EX2"):
            rates.append(
                {
                    "per_silu": round(len(loop) / silus, 2),
                    "float_per_silu": round(count(loop, "FFMA", "FADD", "FMUL") / silus, 2),
                    "special_per_silu": round(count(loop, "MUFU") / silus, 2),
                }
            )
    return max(rates, key=lambda rate: rate["per_silu"], default={})


def per_pair(loops: list[list[str]]) -> dict[str, float]:
    """Instructions and float arithmetic per pair of quantile_huber_loss, added up over its loops:
    one for each side whose gradient is wanted. A pair is clamped, which takes two of FMNMX."""
    total = floats = 0.0
    for loop in loops:
        if pairs := sum(text.startswith("FMNMX") for text in loop) / 2:
            total += len(loop) / pairs
            floats += sum(text.startswith(("FFMA", "FADD", "FMUL")) for text in loop) / pairs
    return {"per_pair": round(total, 2), "float_per_pair": round(floats, 2)} if total else {}


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
        **per_silu(innermost_loops(code)),
        **per_pair(innermost_loops(code)),
    }


def triton_reports() -> Iterator[dict[str, object]]:
    branches = (("exact", torch.float32), ("approximate", torch.bfloat16))
    for sigmoid, dtype in branches:
        flow.sigmoid_of = consistency.sigmoid_of = lambda field, sigmoid=sigmoid: sigmoid
        seen = set()
        for call in launches(dtype):
            for kernel, arguments, warps in record(call):
                name, method = kernel.fn.__name__, arguments.get("METHOD")
                if "PINBALL" in arguments:
                    method = "pinball" if arguments["PINBALL"] else "huber"
                has_silu = "SIGMOID" in arguments
                if (name, method) in seen or (sigmoid == "approximate" and not has_silu):
                    continue
                seen.add((name, method))
                tensors = (x for x in arguments.values() if isinstance(x, torch.Tensor))
                largest = max(tensor.numel() for tensor in tensors)
                for target_name, target in TARGETS.items():
                    if sigmoid == "approximate" and target.backend != "cuda":
                        continue
                    yield {
                        "kernel": name,
                        "method": method,
                        "branch": sigmoid if has_silu else None,
                        "target": target_name,
                        "largest_argument": largest,
                        **report(compile_for(target, kernel, arguments, warps)),
                    }


def cuda_reports() -> Iterator[dict[str, object]]:
    """What ptxas says of the CUDA kernels; nothing where there is no nvcc."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return
    flags = ["-O3", "-std=c++17", "-DDFPO_VARIANT=cuda", "-Xptxas=-v", "-cubin"]
    for source in sorted(CUDA_SOURCES.glob("*.cu")):
        for target in ("sm_80", "sm_90", "sm_100"):
            with tempfile.TemporaryDirectory() as folder:
                cubin = Path(folder) / "kernels.cubin"
                said = subprocess.run(
                    [nvcc, *flags, f"-arch={target}", str(source), "-o", str(cubin)],
                    capture_output=True, text=True, check=True,
                ).stderr  # fmt: skip
                counts = instruction_counts(cubin)
            yield from ptxas_reports(said, target, counts)


def instruction_counts(cubin: Path) -> dict[str, int]:
    """Of each function, by its mangled name."""
    command = [BINARIES / "cuobjdump", "-sass", cubin]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions = re.split(r"Function : (\w+)", sass)[1:]
    return {
        name: sum(not text.startswith("NOP") for _, text in instructions(body))
        for name, body in zip(functions[::2], functions[1::2], strict=True)
    }


def ptxas_reports(said: str, target: str, counts: dict[str, int]) -> Iterator[dict[str, object]]:
    for function, body in re.findall(r"entry function '(\w+)'.*?\n(.*?Used .*?)\n", said, re.S):
        # Mangled: ...11scan_kernelINS0_7GaeScanELb1EEE...
        name, scan, direct, wide = re.search(
            r"(count_kernel|scan_kernel)INS0_\d+(\w+?)E(?:Lb([01])ELb([01])E)?EEv", function
        ).groups()
        path = {None: "", "0": ", staged", "1": ", direct"}[direct]
        path += {None: "", "0": "", "1": " wide"}[wide]

        def number(pattern, body=body):
            found = re.search(rf"(\d+) {pattern}", body)
            return int(found[1]) if found else 0

        yield {
            "kernel": f"{name}<{scan}{path}>",
            "method": None,
            "branch": None,
            "target": target,
            "registers": int(re.search(r"Used (\d+) registers", body)[1]),
            "stack": number("bytes stack frame"),
            "spills": number("bytes spill stores") + number("bytes spill loads"),
            "shared": number("bytes smem"),
            "instructions": counts[function],
        }


def failures(report: dict[str, object]) -> list[str]:
    """The bounds that a kernel's code breaks."""
    limits = {"registers": MOST_REGISTERS, "stack": 0, "spills": 0, "shared": MOST_SHARED}
    limits["per_silu"] = MOST_PER_SILU.get(report["branch"])
    limits["largest_argument"] = R * Q * W - 1
    return [
        f"{name} is {report[name]}, must be at most {limit}"
        for name, limit in limits.items()
        if report.get(name) is not None and limit is not None and report[name] > limit
    ]


def reports() -> list[dict[str, object]]:
    """All of them, from a process of its own: in this one Triton may be the interpreter."""
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    # Compiled code is found again by the hash of its source.
    environment.setdefault("TRITON_CACHE_DIR", str(ROOT / "build" / "triton"))
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    child = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True
    )
    if child.returncode:
        raise RuntimeError(child.stderr)
    return [json.loads(line) for line in child.stdout.splitlines()]


if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET", "0") != "1", "the interpreter compiles nothing"
    for found in (triton_reports(), cuda_reports()):
        for one in found:
            print(json.dumps(one), flush=True)
