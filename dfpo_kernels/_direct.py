"""Direct calls: the common case of each op, past PyTorch's dispatcher.

A public function first asks its direct call, which answers at once where all tensors are plain,
dense and on the CPU, every shape and number is right and nothing looks into PyTorch's calls. It
returns None for everything else: then the general call checks its arguments one by one, and goes
through the dispatcher. Both run the same kernels. csrc/direct.h has the rules.

Dynamo sees no direct call: each stands behind ``torch.compiler.is_dynamo_compiling()``, which
Dynamo knows to be true.
"""

from __future__ import annotations

from collections.abc import Callable

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


def recorder(
    direct_backward: Callable, general_backward: Callable, *, saves_inputs: bool = True
) -> Callable:
    """What a direct call tells autograd: ``apply(outputs, kept, options, *inputs)`` returns its
    outputs, which are there already, with their place in the graph.

    Among the inputs, None stands for a number or for what is absent; ``kept`` is what else the
    backward pass needs as a tensor, and ``options`` all that is no tensor.

    direct_backward: (grads, saved, options, needed) -> gradients of the inputs, or None to step
        aside; ``saved`` are the inputs, if they are saved, and kept; ``needed`` says which
        gradients are.
    general_backward: the same, through the dispatcher and for second derivatives.
    """

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx, outputs, kept, options, *inputs):
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*(inputs if saves_inputs else ()), *kept)
            ctx.options = options
            return outputs if len(outputs) > 1 else outputs[0]

        @staticmethod
        def backward(ctx, *grads):
            if all([grad is None for grad in grads]):
                return (None,) * len(ctx.needs_input_grad)

            rest = ctx.saved_tensors, ctx.options, ctx.needs_input_grad[3:]
            gradients = None
            if not (torch.is_grad_enabled() or torch.compiler.is_dynamo_compiling()):
                dense = tuple([None if grad is None else grad.contiguous() for grad in grads])
                gradients = direct_backward(dense, *rest)
            if gradients is None:
                gradients = general_backward(grads, *rest)

            return None, None, None, *gradients

    # Without the layer of Function.apply for torch.func, under which no call is direct.
    return super(torch.autograd.Function, Recorded).apply


def rerun(general_call: Callable[..., Tensor]) -> Callable:
    """A general_backward that differentiates the general call, (options, *saved) -> output."""

    def general_backward(grads, saved, options, needed):
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            output = general_call(options, *saved)
        wanted = [tensor for tensor, need in zip(saved, needed, strict=False) if need]
        gradients = iter(
            torch.autograd.grad(
                output, wanted, grads, create_graph=create_graph, materialize_grads=True
            )
        )
        return [next(gradients) if need else None for need in needed]

    return general_backward
