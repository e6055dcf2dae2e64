"""Flow consistency loss: its public function, schema and autograd wiring."""

from __future__ import annotations

import torch
from torch import Tensor

from dfpo_kernels import _checks as checks
from dfpo_kernels import _cpu
from dfpo_kernels import _direct as direct
from dfpo_kernels import _dispatch as dispatch
from dfpo_kernels.field import FlowField, as_rows, check_field
from dfpo_kernels.flow_consistency_loss import reference
from dfpo_kernels.integrate_flow import MAX_STEPS, METHODS, native, velocity
from dfpo_kernels.integrate_flow import reference as flow_reference

__all__ = ["flow_consistency_loss"]


def flow_consistency_loss(
    field: FlowField,
    base: Tensor,  # [..., Q] or [Q]
    *,
    shortcut: FlowField | None = None,
    steps: int = 8,
    method: str = "euler",
) -> Tensor:  # [...]
    """How far one step of ``shortcut`` lands from where the flow of ``field`` ends, per row.

        loss = mean_q ( shortcut(base_q, 0) - stopgrad(end_q - base_q) )^2

    with end the integral of field from base over flow time [0, 1]. Nothing is clipped or sorted.

    Args:
        field: the velocity field that is integrated, one per row.
        base: where the particles start, [..., Q] in units of return, or [Q] shared by all rows.
        shortcut: field of the one-step displacement, its own W allowed; default field itself.
        steps: number of solver steps, at least 1.
        method: "euler", "midpoint", "heun" or "rk4", as in integrate_flow.

    Returns:
        float32 [...] (float64 if any input has it), unreduced over rows. Differentiable in
        shortcut, or in field where that is the shortcut, and in base; all through the velocity
        at time 0 only, so field receives no gradient when a shortcut is given.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    if not torch.compiler.is_dynamo_compiling():
        tableau = METHODS.get(method) if isinstance(method, str) else None
        loss = _direct_call(_record, field, base, shortcut, steps, tableau, method)
        if loss is not None:
            return loss

    return _general_call(field, base, shortcut=shortcut, steps=steps, method=method)


def _general_call(field, base, *, shortcut, steps, method):
    check_field("field", field)
    lead = tuple(field.offset.shape)
    if shortcut is None:
        shortcut = field
    else:
        check_field("shortcut", shortcut)
        checks.check_shape("shortcut.offset", shortcut.offset, lead, "[...], rows of field")

    checks.check_float_tensor("base", base)
    checks.check_rank("base", base, 1, "[..., Q] or [Q]")
    num_quantiles = base.shape[-1]
    if num_quantiles < 1:
        raise ValueError("base: has Q = 0, must have at least one quantile")
    if base.dim() > 1:
        checks.check_shape("base", base, (*lead, num_quantiles), "[..., Q] or [Q], rows of field")
    steps = checks.check_integer("steps", steps, 1, MAX_STEPS)
    checks.check_choice("method", method, METHODS)
    checks.check_same_device(
        base=base, **{"field.bias": field.bias, "shortcut.bias": shortcut.bias}
    )

    if dispatch.runs_reference(*field, *shortcut, base):
        return reference.flow_consistency_loss(
            field, base, shortcut=shortcut, steps=steps, method=method
        )

    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (*shortcut, base))
    loss, _ = _op(
        *(tensor.detach() for tensor in as_rows(field)),
        *as_rows(shortcut),
        base.reshape(-1, num_quantiles),
        steps,
        method,
        needs_grad,
    )

    return loss.reshape(lead)


def _fake(*args):
    *_, base, steps, method, save = args
    rows = args[0].shape[0]
    return (
        base.new_empty((rows,), dtype=torch.float32),
        base.new_empty((rows, base.shape[1]) if save else (0,), dtype=torch.float32),
    )


def _cpu_kernel(*args):
    *fields, base, steps, method, save = args
    rows, num_quantiles = fields[0].shape[0], base.shape[1]
    loss, residual = _fake(*args)
    field, shortcut = (native.laid_out(FlowField(*part)) for part in (fields[:5], fields[5:]))
    base = native.spread(base, rows)
    _cpu.flow_consistency_loss(
        native.field_argument(field),
        native.field_argument(shortcut),
        flow_reference.METHODS[method],
        steps,
        dispatch.rows(base),
        dispatch.pointer(loss),
        dispatch.pointer(residual) if save else 0,
        rows,
        num_quantiles,
        torch.get_num_threads(),
    )

    return loss, residual


def _reference_kernel(*args):
    *fields, base, steps, method, save = args
    field, shortcut = FlowField(*fields[:5]), FlowField(*fields[5:])
    z = base.float().expand(field.bias.shape[0], -1)
    end = flow_reference.integrate_flow(field, z, steps=steps, method=method)
    residual = flow_reference.flow_velocity(shortcut, z, 0.0) - (end - z)
    loss = residual.square().mean(-1)
    return loss, residual if save else base.new_empty((0,), dtype=torch.float32)


def _schema_of(prefix: str) -> str:
    names = FlowField._fields
    return ", ".join(f"Tensor {prefix}{name}" for name in names)


_op = dispatch.define_op(
    "flow_consistency_loss",
    f"({_schema_of('')}, {_schema_of('shortcut_')}, Tensor base, SymInt steps, str method,"
    " bool save_residual) -> (Tensor, Tensor)",
    reference=_reference_kernel,
    fake=_fake,
    cpu=_cpu_kernel,
    **dispatch.triton_launcher("flow_consistency_loss", "flow_consistency_loss"),
)


def _setup_context(ctx, inputs, output):
    _, residual = output
    ctx.mark_non_differentiable(residual)
    ctx.save_for_backward(*inputs[:11], residual)
    ctx.options = inputs[11:13]


def _backward(ctx, grad_loss, _grad_residual):
    *inputs, residual = ctx.saved_tensors
    *shortcut, base = inputs[5:]
    if torch.is_grad_enabled():  # create_graph=True: the residual is a constant to autograd
        steps, method = ctx.options

        def run(*wanted):
            end = flow_reference.integrate_flow(
                FlowField(*inputs[:5]), base.detach(), steps=steps, method=method
            )
            z = wanted[5].float().expand(residual.shape)
            moved = flow_reference.flow_velocity(FlowField(*wanted[:5]), z, 0.0)
            return (moved - (end - base).detach()).square().mean(-1)

        needed = ctx.needs_input_grad[5:11]
        grads = dispatch.differentiable_gradients(run, inputs[5:], needed, grad_loss)
        return (None,) * 5 + (*grads, None, None, None)

    # d loss / d velocity = 2 residual / Q; the rest is the backward pass of the velocity.
    grad_velocity = residual * (grad_loss * (2.0 / residual.shape[1])).unsqueeze(-1)
    grads = velocity.backward_op(grad_velocity, *shortcut, base, grad_loss.new_zeros((1, 1)))
    wanted = (
        grad if needed else None
        for grad, needed in zip(grads[:6], ctx.needs_input_grad[5:11], strict=True)
    )

    return (None,) * 5 + (*wanted, None, None, None)


dispatch.define_gradient(_op, setup_context=_setup_context, backward=_backward)

_direct_call = direct.direct_call("flow_consistency_loss")


def _direct_backward(grads, saved, _options, needed):
    (grad_loss,), (*shortcut, base, residual) = grads, saved[:7]
    grad_velocity = residual * (grad_loss * (2.0 / base.shape[-1])).unsqueeze(-1)
    gradients = velocity.direct_backward(
        (grad_velocity,), (*shortcut, base, None), 0.0, (*needed, False)
    )
    return None if gradients is None else gradients[:6]


def _again(options, *saved):
    steps, method = options
    *shortcut, base, _ = saved[:7]
    field = saved[7:] if saved[7] is not None else shortcut
    return _general_call(
        FlowField(*field), base, shortcut=FlowField(*shortcut), steps=steps, method=method
    )


_record = direct.recorder(_direct_backward, direct.rerun(_again))
