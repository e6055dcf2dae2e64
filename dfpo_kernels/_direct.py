"""Direct calls: the common case of each op, past PyTorch's dispatcher.

A public function first asks its direct call, which answers at once where all tensors are plain,
dense and on the CPU, every shape and number is right and nothing looks into PyTorch's calls. It
returns None for everything else: then the general call checks its arguments one by one, and goes
through the dispatcher. Both run the same kernels. csrc/direct.h has the rules.

Dynamo sees no direct call: each stands behind ``torch.compiler.is_dynamo_compiling()``, which
Dynamo knows to be true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dfpo_kernels import _cpu
from dfpo_kernels import _dispatch as dispatch
from dfpo_kernels.field import FlowField

# Direct calls step aside where one of these is true: they act on the ops of PyTorch.
_WATCHERS = (
    torch._C._are_functorch_transforms_active,
    torch._C._len_torch_dispatch_stack,
    torch._C._is_torch_function_mode_enabled,
    torch._C._get_tracing_state,
    torch._C._autograd._profiler_enabled,
    lambda: forward_ad._current_level >= 0,
)


def _connect() -> bool:
    exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    return exchange is not None and _cpu.connect(
        exchange,
        (Tensor, torch.nn.Parameter),
        FlowField,
        _WATCHERS,
        torch.is_grad_enabled,
        torch.get_num_threads,
        Tensor.is_neg,
        torch.empty_like,
        torch.empty,
        torch.float32,
    )


_CONNECTED = _connect()


def direct_call(op: str) -> Callable:
    """The direct call of an op, or of its backward pass: its result, or None where it steps
    aside. It always does where the op has no kernel for the CPU or references are asked for."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"dfpo::{op}", "CPU")
    if _CONNECTED and has_kernel and dispatch.MODE != "reference":
        return getattr(_cpu, f"direct_{op}")
    return lambda *_: None


def recorder(backward: Callable, general: Callable) -> Callable:
    """What a direct call tells autograd: ``apply(outputs, kept, options, *inputs)`` returns its
    only output, which is there already, with its place in the graph.

    Among the inputs, None stands for a number or for what is absent; ``kept`` is what the kernel
    left for the backward pass, and ``options`` all that is no tensor.

    backward: (grad, saved, options, needed) -> gradients of the inputs, or None to step aside;
        ``saved`` are inputs and kept, ``needed`` says which gradients are.
    general: (options, *saved) -> the output by the general call, which is run again and
        differentiated where the backward pass steps aside, and for second derivatives.
    """

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, outputs, kept, options, *inputs):
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*inputs, *kept)
            ctx.options = options
            return outputs[0]

        @staticmethod
        def backward(ctx, grad):
            saved, options, needed = ctx.saved_tensors, ctx.options, ctx.needs_input_grad[3:]
            grads = None
            if not (torch.is_grad_enabled() or torch.compiler.is_dynamo_compiling()):
                grads = backward(grad.contiguous(), saved, options, needed)
            if grads is None:
                grads = _general_gradients(partial(general, options), saved, needed, grad)
            return None, None, None, *grads

    # Without the layer of Function.apply for torch.func, under which no call is direct.
    return super(torch.autograd.Function, Recorded).apply


def _general_gradients(
    run: Callable[..., Tensor], saved: Sequence[Tensor | None], needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        wanted = [tensor for tensor, need in zip(saved, needed, strict=False) if need]
        grads = iter(
            torch.autograd.grad(
                run(*saved), wanted, grad, create_graph=create_graph, materialize_grads=True
            )
        )

    return [next(grads) if need else None for need in needed]
