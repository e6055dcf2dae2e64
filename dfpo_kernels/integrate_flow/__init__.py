"""Integral of a value flow: its public function, schema and autograd wiring."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dfpo_kernels import _checks as checks
from dfpo_kernels import _cpu
from dfpo_kernels import _direct as direct
from dfpo_kernels import _dispatch as dispatch
from dfpo_kernels.field import FlowField, as_rows, check_field
from dfpo_kernels.integrate_flow import native, reference
from dfpo_kernels.integrate_flow.velocity import flow_velocity

__all__ = ["flow_velocity", "integrate_flow"]

METHODS = reference.METHODS
MAX_STEPS = 2**31 - 1


def integrate_flow(
    field: FlowField | Callable[[Tensor, Tensor], Tensor],
    base: Tensor,  # [..., Q] or [Q]
    *,
    steps: int = 8,
    method: str = "euler",
    start: Tensor | float = 0.0,  # scalar or [...]
    end: Tensor | float = 1.0,  # scalar or [...]
    trajectory: bool = False,
) -> Tensor:  # [..., Q] or [..., steps + 1, Q]
    """Particles carried by a velocity field from flow time ``start`` to ``end``.

    Solves dz/ds = velocity(z, s) with z(start) = base on a uniform grid of ``steps`` steps,

        z_{k+1} = z_k + h sum_i b_i v_i,   v_i = velocity(z_k + h sum_j a_ij v_j, s_k + c_i h),

    h = (end - start) / steps, s_k = start + k h. The methods (a, b, c) are euler; midpoint; heun,
    the explicit trapezoid rule; and rk4, which is Kutta's 3/8 rule. So euler, midpoint and rk4 are
    torchdiffeq's methods of these names on the same grid, to rounding.

    Args:
        field: a FlowField, one per row (fused kernel), or any callable velocity(z, s) -> dz with
            z [..., Q] and s [] or [..., 1], called in float32 (float64 if base, start or end has
            it) and solved in plain PyTorch. Note that torchdiffeq's order is (t, y).
        base: where the particles start, [..., Q] in units of return, or [Q] shared by all rows.
        steps: number of solver steps, at least 1.
        method: "euler", "midpoint", "heun" or "rk4".
        start: flow time of base, a number or 0-d tensor, or [...] per row.
        end: flow time of the result; may lie before start.
        trajectory: return the states at all steps + 1 grid times, base first.

    Returns:
        [..., Q], or [..., steps + 1, Q] with trajectory, in the dtype of base; arithmetic in
        float32, or in float64 where any input has it. Differentiable in the field, base, start and
        end: the gradient of the discrete computation. For a FlowField nothing of size [..., Q, W]
        is stored; where a gradient is needed, the states before each step are.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    if not torch.compiler.is_dynamo_compiling():
        tableau = METHODS.get(method) if isinstance(method, str) else None
        out = _direct_call(_record, field, base, steps, tableau, start, end, trajectory, method)
        if out is not None:
            return out

    return _general_call(
        field, base, steps=steps, method=method, start=start, end=end, trajectory=trajectory
    )


def _general_call(field, base, *, steps, method, start, end, trajectory):
    checks.check_float_tensor("base", base)
    checks.check_rank("base", base, 1, "[..., Q] or [Q]")
    num_quantiles = base.shape[-1]
    if num_quantiles < 1:
        raise ValueError("base: has Q = 0, must have at least one quantile")
    steps = checks.check_integer("steps", steps, 1, MAX_STEPS)
    checks.check_choice("method", method, METHODS)
    lead = check_field_or_callable(field, base)
    start = checks.check_time("start", start, base)
    end = checks.check_time("end", end, base)

    for name, time in (("start", start), ("end", end)):
        if time.dim() > 0:
            checks.check_shape(name, time, lead, "a scalar or [...], one per row")

    checks.check_same_device(base=base, start=start, end=end)

    fused = isinstance(field, FlowField)
    if not fused or dispatch.runs_reference(*field, base, start, end):
        return reference.integrate_flow(
            field,
            base,
            steps=steps,
            method=method,
            start=start,
            end=end,
            trajectory=trajectory,
        )

    needs_grad = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (*field, base, start, end)
    )
    out, _ = _op(
        *as_rows(field),
        base.reshape(-1, num_quantiles),
        start.reshape(-1, 1),
        end.reshape(-1, 1),
        steps,
        method,
        trajectory,
        needs_grad,
    )

    return out.reshape(*lead, *out.shape[1:])


def check_field_or_callable(field: object, base: Tensor) -> tuple[int, ...]:
    """Checks field against base and returns the leading shape of the result."""
    if not isinstance(field, FlowField):
        if not callable(field):
            raise TypeError(
                f"field: got {type(field).__name__}, must be a FlowField or a callable (z, s) -> dz"
            )
        return tuple(base.shape[:-1])

    check_field("field", field)
    checks.check_same_device(base=base, **{"field.bias": field.bias})
    lead = tuple(field.offset.shape)
    if base.dim() > 1:
        checks.check_shape("base", base, (*lead, base.shape[-1]), "[..., Q] or [Q], rows of field")

    return lead


def _fake(
    bias, gain, offset, z_weight, time_weight, base, start, end, steps, method, trajectory, save
):
    rows, num_quantiles = bias.shape[0], base.shape[1]
    states = (steps + 1,) if trajectory else ()
    return (
        base.new_empty((rows, *states, num_quantiles)),
        base.new_empty((rows, steps, num_quantiles) if save else (0,), dtype=torch.float32),
    )


def _cpu_kernel(
    bias, gain, offset, z_weight, time_weight, base, start, end, steps, method, trajectory, save
):
    rows, num_quantiles = bias.shape[0], base.shape[1]
    inputs = (bias, gain, offset, z_weight, time_weight, base, start, end)
    out, path = _fake(*inputs, steps, method, trajectory, save)
    field = native.laid_out(FlowField(*inputs[:5]))
    base, start, end = (native.spread(tensor, rows) for tensor in inputs[5:])
    _cpu.integrate_flow(
        native.field_argument(field),
        reference.METHODS[method],
        steps,
        dispatch.rows(base),
        dispatch.rows(start),
        dispatch.rows(end),
        dispatch.rows(out),
        trajectory,
        dispatch.pointer(path) if save else 0,
        rows,
        num_quantiles,
        torch.get_num_threads(),
    )

    return out, path


def _states(
    bias, gain, offset, z_weight, time_weight, base, start, end, *, steps, method
):  # [R, steps + 1, Q] in the dtype of base
    rows = bias.shape[0]
    return reference.integrate_flow(
        FlowField(bias, gain, offset, z_weight, time_weight),
        base.expand(rows, -1),
        steps=steps,
        method=method,
        start=start.expand(rows, 1).squeeze(1),
        end=end.expand(rows, 1).squeeze(1),
        trajectory=True,
    )


def _reference_kernel(
    bias, gain, offset, z_weight, time_weight, base, start, end, steps, method, trajectory, save
):
    field = (bias, gain, offset, z_weight, time_weight)
    states = _states(*field, base.float(), start, end, steps=steps, method=method)
    out = states if trajectory else states[:, -1]
    path = states[:, :-1].clone() if save else base.new_empty((0,), dtype=torch.float32)
    return out.to(base.dtype, copy=True).contiguous(), path


_FIELD_SCHEMA = "Tensor bias, Tensor gain, Tensor offset, Tensor z_weight, Tensor time_weight"

_op = dispatch.define_op(
    "integrate_flow",
    f"({_FIELD_SCHEMA}, Tensor base, Tensor start, Tensor end, SymInt steps, str method,"
    " bool trajectory, bool save_path) -> (Tensor, Tensor)",
    reference=_reference_kernel,
    fake=_fake,
    cpu=_cpu_kernel,
    **dispatch.triton_launcher("integrate_flow", "integrate_flow"),
)


def _fake_backward(
    grad_out, bias, gain, offset, z_weight, time_weight, path, start, end, shared_base, *_options
):
    rows, num_quantiles = grad_out.shape[0], grad_out.shape[-1]
    grad_base = grad_out.new_empty((1 if shared_base else rows, num_quantiles))
    *grad_field, grad_start, grad_end = native.empty_gradients(
        bias, gain, offset, z_weight, time_weight, start, end
    )
    return (*grad_field, grad_base, grad_start, grad_end)


def _cpu_backward(
    grad_out, bias, gain, offset, z_weight, time_weight, path, start, end, shared_base, *options
):
    steps, method, trajectory, time_grad = options
    rows, num_quantiles = grad_out.shape[0], grad_out.shape[-1]
    inputs = (bias, gain, offset, z_weight, time_weight, path, start, end)
    grads = _fake_backward(grad_out, *inputs, shared_base)
    sums = native.SharedGrads(bias.shape[1], num_quantiles, bias)
    field = native.laid_out(FlowField(*inputs[:5]))
    start, end = native.spread(start, rows), native.spread(end, rows)
    grad_rows = dispatch.with_contiguous_rows(grad_out.flatten(1))
    _cpu.integrate_flow_backward(
        native.field_argument(field),
        reference.METHODS[method],
        steps,
        dispatch.rows(start),
        dispatch.rows(end),
        dispatch.pointer(path),
        dispatch.rows(grad_rows),
        trajectory,
        time_grad,
        tuple(dispatch.rows(grad) for grad in grads[:3]),
        *(native.own_rows(grad, rows) for grad in grads[5:]),
        dispatch.pointer(sums.sums),
        rows,
        num_quantiles,
        torch.get_num_threads(),
    )

    sums.copy_to(rows, *grads[3:])
    return grads


def _reference_backward(
    grad_out, bias, gain, offset, z_weight, time_weight, path, start, end, shared_base, *options
):
    steps, method, trajectory, _ = options
    inputs = (bias, gain, offset, z_weight, time_weight, path[:, 0], start, end)

    def run(*inputs):
        states = _states(*inputs, steps=steps, method=method)
        return states if trajectory else states[:, -1]

    _, vjp = torch.func.vjp(run, *inputs)
    *grad_field, grad_base, grad_start, grad_end = vjp(grad_out.float())
    if shared_base:
        grad_base = grad_base.sum(0, keepdim=True)
    return (*grad_field, grad_base.to(grad_out.dtype), grad_start, grad_end)


_backward_op = dispatch.define_op(
    "integrate_flow_backward",
    f"(Tensor grad_out, {_FIELD_SCHEMA}, Tensor path, Tensor start, Tensor end, bool shared_base,"
    " SymInt steps, str method, bool trajectory, bool time_grad)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=_reference_backward,
    fake=_fake_backward,
    cpu=_cpu_backward,
    **dispatch.triton_launcher("integrate_flow", "integrate_flow_backward"),
    public=False,
)
dispatch.forbid_gradient(_backward_op)


def _setup_context(ctx, inputs, output):
    *field, base, start, end, steps, method, trajectory, _ = inputs
    _, path = output
    ctx.mark_non_differentiable(path)
    ctx.save_for_backward(*field, base, start, end, path)
    ctx.options = (base.shape[0] != field[0].shape[0], steps, method, trajectory)


def _backward(ctx, grad_out, _grad_path):
    *field, base, start, end, path = ctx.saved_tensors
    _, steps, method, trajectory = ctx.options
    needed = ctx.needs_input_grad[:8]
    if (
        torch.is_grad_enabled()
    ):  # create_graph=True: the states on the path are constants to autograd

        def run(*inputs):
            states = _states(*inputs, steps=steps, method=method)
            return states if trajectory else states[:, -1]

        inputs = (*field, base, start, end)
        grads = dispatch.differentiable_gradients(run, inputs, needed, grad_out)
        return (*grads, None, None, None, None)

    time_grad = any(needed[6:8])
    grads = _backward_op(grad_out, *field, path, start, end, *ctx.options, time_grad)
    wanted = (grad if needed else None for grad, needed in zip(grads, needed, strict=True))
    return (*wanted, None, None, None, None)


dispatch.define_gradient(_op, setup_context=_setup_context, backward=_backward)

_direct_call = direct.direct_call("integrate_flow")


def _again(options, *saved):
    steps, _, trajectory, *numbers, method = options
    *field, base, start, end, _ = saved
    start, end = (
        number if tensor is None else tensor
        for number, tensor in zip(numbers, (start, end), strict=True)
    )
    return _general_call(
        FlowField(*field), base, steps=steps, method=method, start=start, end=end,
        trajectory=trajectory,
    )  # fmt: skip


_record = direct.recorder(direct.direct_call("integrate_flow_backward"), direct.rerun(_again))
