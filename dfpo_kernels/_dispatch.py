"""The one dispatch rule: the device of the tensors decides which kernel runs.

Every op is defined once, by its schema, in the ``dfpo`` library of ``torch.library``. Its C++
kernel is registered for CPU, its Triton or CUDA kernel for CUDA where there is one, and its plain
PyTorch reference for whatever is left. Nothing falls back in silence: the reference answers on an
accelerator with one warning that names the remedy, or not at all under ``DFPO_KERNELS=strict``.

Environment, read once at import:
    DFPO_KERNELS=auto       (default) native kernels, reference with a warning where there is none
    DFPO_KERNELS=strict     raise where there is no native kernel
    DFPO_KERNELS=reference  call the references under ordinary autograd, for comparisons
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dfpo_kernels import _cpu

MODES = ("auto", "strict", "reference")
MODE = os.environ.get("DFPO_KERNELS", "auto")
if MODE not in MODES:
    raise ValueError(f"DFPO_KERNELS: is {MODE!r}, must be one of {', '.join(MODES)}")
# For tests: which CPU variant runs, whatever the processor offers.
if variant := os.environ.get("DFPO_CPU_VARIANT"):
    _cpu.set_variant(variant)

# None where dfpo was installed without nvcc. One that is there and cannot be loaded raises.
CUDA_MODULE: ModuleType | None = (
    importlib.import_module("dfpo_kernels._cuda")
    if importlib.util.find_spec("dfpo_kernels._cuda")
    else None
)


def _has_triton() -> bool:
    try:
        return importlib.util.find_spec("triton") is not None
    except ModuleNotFoundError:
        return False


HAS_TRITON = _has_triton()

LIBRARY = torch.library.Library("dfpo", "DEF")
_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_BACKENDS: dict[str, dict[str, str]] = {}
_NUMBER_PLACES: dict[str, list[int]] = {}


def backends() -> dict[str, dict[str, str]]:
    """What the dispatcher really holds: op name -> device -> kernel, for example
    ``{"integrate_flow": {"cpu": "cpp avx512", "cuda": "triton"}, ...}``."""
    if MODE == "reference":
        return {op: dict.fromkeys(devices, "reference") for op, devices in _BACKENDS.items()}
    return {
        op: {d: f"cpp {_cpu.variant()}" if kind == "cpp" else kind for d, kind in devices.items()}
        for op, devices in _BACKENDS.items()
    }


def define_op(
    name: str,
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    cpu: Callable | None = None,
    cuda: Callable | None = None,
    cuda_kind: str = "reference",
    public: bool = True,
    numbers: Sequence[str] = (),
) -> Callable:
    """Defines ``dfpo::name`` with its kernels and returns it, ready to call.

    reference: same signature, plain PyTorch; answers for every device without a kernel.
    fake: same signature, shapes and dtypes only, for torch.compile and FakeTensor.
    public: listed by ``backends()`` (backward ops are not).
    numbers: arguments that are a ``number`` tensor to the dispatcher, so that torch.compile takes
        any value without compiling again, and a Python number to the kernels.
    """
    _NUMBER_PLACES[name] = [_argument_names(schema).index(argument) for argument in numbers]
    LIBRARY.define(f"{name}{schema}")
    qualified = f"dfpo::{name}"
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    if cpu is not None:
        LIBRARY.impl(name, reading_numbers(name, cpu), "CPU")
    if cuda is not None:
        LIBRARY.impl(name, reading_numbers(name, cuda), "CUDA")
    fallback = _without_kernel(name, reading_numbers(name, reference))
    LIBRARY.impl(name, fallback, "CompositeExplicitAutograd")
    if public:
        _BACKENDS[name] = {"cpu": "cpp" if cpu else "reference", "cuda": cuda_kind}

    return getattr(torch.ops.dfpo, name).default


def number(value: float) -> Tensor:
    """A setting as the dispatcher sees it: 0-d float64 on the CPU, whose reading waits for no
    device."""
    return torch.full((), value, dtype=torch.float64, device="cpu")


def _argument_names(schema: str) -> list[str]:
    return [part.split()[-1] for part in schema.partition(") ->")[0].strip("(").split(",")]


def reading_numbers(name: str, kernel: Callable) -> Callable:
    """A kernel of the op that takes Python numbers, as the dispatcher calls it."""
    places = _NUMBER_PLACES[name]
    if not places:
        return kernel

    def run(*args):
        return kernel(*(arg.item() if place in places else arg for place, arg in enumerate(args)))

    return run


def triton_launcher(room: str, name: str) -> dict[str, object]:
    """For define_op: the launcher ``name`` of ``dfpo_kernels/<room>/triton_kernel.py``, imported at
    its first call, because triton takes its time and a CPU needs none of it."""
    if not HAS_TRITON:
        return {}

    def launch(*args):
        kernels = importlib.import_module(f"dfpo_kernels.{room}.triton_kernel")
        tensor = next(arg for arg in args if isinstance(arg, Tensor))
        # Triton launches on the current device, and on its current stream.
        with torch.cuda.device(tensor.device):
            return getattr(kernels, name)(*args)

    return {"cuda": launch, "cuda_kind": "triton"}


def cuda_launcher(launch: Callable) -> dict[str, object]:
    """For define_op: a launcher of the CUDA module, where that was built."""
    return {"cuda": launch, "cuda_kind": "cuda"} if CUDA_MODULE else {}


def define_gradient(op: Callable, *, setup_context: Callable, backward: Callable) -> None:
    """Wires autograd of an op; ``backward`` holds no math beyond calling the backward op."""

    def setup(ctx, inputs, output):
        # Outputs kept for the backward pass would otherwise get gradients full of zeros.
        ctx.set_materialize_grads(False)
        setup_context(ctx, inputs, output)

    torch.library.register_autograd(op, backward, setup_context=setup, lib=LIBRARY)


def forbid_gradient(op: Callable) -> None:
    """A backward op is not differentiable: say so rather than cut the graph in silence."""

    def backward(ctx, *_grads):
        raise RuntimeError(
            f"{op.name()} has no second derivative; call dfpo_kernels.reference for that"
        )

    torch.library.register_autograd(op, backward, setup_context=lambda *_, **__: None, lib=LIBRARY)


def _without_kernel(name: str, reference: Callable) -> Callable:
    warned: set[str] = set()

    def run(*args):
        device = next(a.device.type for a in args if isinstance(a, Tensor))
        message = (
            f"dfpo_kernels: no native kernel of {name} for {device}; reinstall dfpo with nvcc and "
            f"triton on the path for CUDA, or move the tensors to the CPU"
        )
        if MODE == "strict":
            raise RuntimeError(message)
        if device not in warned:
            warned.add(device)
            warnings.warn(message + ". The PyTorch reference answers.", stacklevel=2)

        return reference(*args)

    return run


def runs_reference(*tensors: Tensor | None) -> bool:
    """float64 runs the reference by definition; so does everything in reference mode, and whatever
    the kernels have no rule for: under ``torch.func`` (vmap, jvp, grad, and what is made of them)
    and for a tensor with a tangent of forward-mode differentiation."""
    if MODE == "reference" or torch._C._are_functorch_transforms_active():
        return True
    given = [tensor for tensor in tensors if tensor is not None]
    return any(t.dtype == torch.float64 for t in given) or any(map(_has_tangent, given))


def _has_tangent(tensor: Tensor) -> bool:
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None


def differentiable_gradients(
    run: Callable[..., Tensor], inputs: Sequence[Tensor], needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Gradients of ``run`` that can be differentiated again, for a backward pass under
    ``create_graph=True``: None where one is not needed."""
    with torch.enable_grad():
        out = run(*inputs)
        wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
        grads = iter(
            torch.autograd.grad(
                out, wanted, grad.to(out.dtype), create_graph=True, materialize_grads=True
            )
        )

    return [next(grads) if need else None for need in needed]


def rows(tensor: Tensor | None) -> tuple[int, int, int]:
    """A [R, n] tensor with contiguous rows as csrc/rows.h sees it: pointer, dtype, row stride."""
    if tensor is None:
        return (0, 0, 0)
    return (tensor.data_ptr(), _DTYPE_CODES[tensor.dtype], tensor.stride(0))


def tokens(tensor: Tensor | None, packed: bool) -> tuple[int, int, int, int]:
    """A tensor [B, T] or [B, T, Q], packed [N] or [N, Q], as csrc/scan_args.h sees it: pointer,
    dtype, row stride and token stride. Q, if there, is contiguous."""
    if tensor is None:
        return (0, 0, 0, 0)
    return (tensor.data_ptr(), _DTYPE_CODES[tensor.dtype], *_token_strides(tensor, packed))


def flags(tensor: Tensor | None, packed: bool) -> tuple[int, int, bool, int, int]:
    """A tensor [B, T] or packed [N] of any dtype, of which nonzero counts: pointer, log2 of the
    element size, is it floating, row stride and token stride."""
    if tensor is None:
        return (0, 0, False, 0, 0)
    log2_size = tensor.element_size().bit_length() - 1
    strides = _token_strides(tensor, packed)
    return (tensor.data_ptr(), log2_size, tensor.is_floating_point(), *strides)


def _token_strides(tensor: Tensor, packed: bool) -> tuple[int, int]:
    return (0, tensor.stride(0)) if packed else (tensor.stride(0), tensor.stride(1))


def pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def launch_cuda(name: str, tensor: Tensor, *args: object) -> None:
    """Calls a launcher of the CUDA module, on the tensor's device and that device's current stream.
    A failed launch raises RuntimeError with the text of CUDA."""
    with torch.cuda.device(tensor.device):
        stream = torch.cuda.current_stream().cuda_stream
        getattr(CUDA_MODULE, name)(*args, tensor.device.index, stream)


def with_contiguous_rows(tensor: Tensor) -> Tensor:
    """The tensor itself if its last axis is contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()
