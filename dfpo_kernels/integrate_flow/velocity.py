"""The velocity field: its public function, schema and autograd wiring."""

from __future__ import annotations

import torch
from torch import Tensor

from dfpo_kernels import _checks as checks
from dfpo_kernels import _cpu
from dfpo_kernels import _direct as direct
from dfpo_kernels import _dispatch as dispatch
from dfpo_kernels.field import FlowField, as_rows, check_field
from dfpo_kernels.integrate_flow import native, reference


def flow_velocity(
    field: FlowField,
    z: Tensor,  # [..., Q]
    flow_time: Tensor | float,  # scalar, [...] or [..., Q]
) -> Tensor:  # [..., Q]
    """Velocity of the value flow at ``z`` and ``flow_time``, one field per row.

    velocity(z, s) = offset + sum_w gain_w * silu(bias_w + z_weight_w * z + time_weight_w * s)

    Args:
        field: coefficients, bias [..., W], gain [..., W], offset [...], z_weight [W],
            time_weight [W]; dtypes may differ from each other and from z.
        z: particles, [..., Q], in units of return, with the leading shape of ``field.offset``.
        flow_time: a number or 0-d tensor for all, [...] per row, or [..., Q] per particle.

    Returns:
        [..., Q] in the dtype of z; arithmetic in float32, or in float64 where any input has it.
        Differentiable in the field, z and flow_time. Nothing of size [..., Q, W] is stored.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    if not torch.compiler.is_dynamo_compiling():
        velocity = _direct_call(_record, field, z, flow_time)
        if velocity is not None:
            return velocity

    return _general_call(field, z, flow_time)


def _general_call(field, z, flow_time):
    check_field("field", field)
    checks.check_float_tensor("z", z)
    checks.check_rank("z", z, 1, "[..., Q]")
    lead, num_quantiles = tuple(field.offset.shape), z.shape[-1]
    if num_quantiles < 1:
        raise ValueError("z: has Q = 0, must have at least one quantile")
    checks.check_shape("z", z, (*lead, num_quantiles), "[..., Q], rows of field.offset")
    flow_time = checks.check_time("flow_time", flow_time, z)
    per_quantile = flow_time.dim() == z.dim()

    if per_quantile:
        checks.check_shape("flow_time", flow_time, z.shape, "[..., Q], the shape of z")
    elif flow_time.dim() > 0:
        checks.check_shape("flow_time", flow_time, lead, "a scalar, [...] or [..., Q] as z")

    checks.check_same_device(z=z, **{"field.bias": field.bias, "flow_time": flow_time})

    if dispatch.runs_reference(*field, z, flow_time):
        return reference.flow_velocity(field, z, flow_time)
    velocity = op(
        *as_rows(field),
        z.reshape(-1, num_quantiles),
        flow_time.reshape(-1, num_quantiles if per_quantile else 1),
    )

    return velocity.reshape(z.shape)


def _fake(bias, gain, offset, z_weight, time_weight, z, flow_time):
    return z.new_empty((bias.shape[0], z.shape[1]))


def _cpu_kernel(bias, gain, offset, z_weight, time_weight, z, flow_time):
    rows, num_quantiles = bias.shape[0], z.shape[1]
    field = native.laid_out(FlowField(bias, gain, offset, z_weight, time_weight))
    velocity = z.new_empty((rows, num_quantiles))
    z, flow_time = native.spread(z, rows), native.spread(flow_time, rows)
    _cpu.flow_velocity(
        native.field_argument(field),
        dispatch.rows(z),
        dispatch.rows(flow_time),
        flow_time.shape[1] > 1,
        dispatch.rows(velocity),
        rows,
        num_quantiles,
        torch.get_num_threads(),
    )

    return velocity


def _reference_kernel(bias, gain, offset, z_weight, time_weight, z, flow_time):
    field = FlowField(bias, gain, offset, z_weight, time_weight)
    return reference.flow_velocity(field, z.expand(bias.shape[0], -1), flow_time)


op = dispatch.define_op(
    "flow_velocity",
    "(Tensor bias, Tensor gain, Tensor offset, Tensor z_weight, Tensor time_weight, Tensor z,"
    " Tensor flow_time) -> Tensor",
    reference=_reference_kernel,
    fake=_fake,
    cpu=_cpu_kernel,
    **dispatch.triton_launcher("integrate_flow", "flow_velocity"),
)


def _fake_backward(grad_velocity, *inputs):
    return native.empty_gradients(*inputs)


def _cpu_backward(grad_velocity, bias, gain, offset, z_weight, time_weight, z, flow_time):
    rows, num_quantiles = grad_velocity.shape
    inputs = (bias, gain, offset, z_weight, time_weight, z, flow_time)
    grads = native.empty_gradients(*inputs)
    sums = native.SharedGrads(bias.shape[1], num_quantiles, bias)
    field = native.laid_out(FlowField(*inputs[:5]))
    grad_velocity = dispatch.with_contiguous_rows(grad_velocity)
    z, flow_time = native.spread(z, rows), native.spread(flow_time, rows)
    _cpu.flow_velocity_backward(
        native.field_argument(field),
        dispatch.rows(z),
        dispatch.rows(flow_time),
        flow_time.shape[1] > 1,
        dispatch.rows(grad_velocity),
        tuple(dispatch.rows(grad) for grad in grads[:3]),
        native.own_rows(grads[5], rows),
        native.own_rows(grads[6], rows),
        dispatch.pointer(sums.sums),
        rows,
        num_quantiles,
        torch.get_num_threads(),
    )

    sums.copy_to(rows, *grads[3:])
    return grads


def _reference_backward(grad_velocity, *inputs):
    # Below the dispatcher autograd records nothing; torch.func does.
    _, vjp = torch.func.vjp(_reference_kernel, *inputs)
    return vjp(grad_velocity)


backward_op = dispatch.define_op(
    "flow_velocity_backward",
    "(Tensor grad_velocity, Tensor bias, Tensor gain, Tensor offset, Tensor z_weight,"
    " Tensor time_weight, Tensor z, Tensor flow_time)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=_reference_backward,
    fake=_fake_backward,
    cpu=_cpu_backward,
    **dispatch.triton_launcher("integrate_flow", "flow_velocity_backward"),
    public=False,
)
dispatch.forbid_gradient(backward_op)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_velocity):
    if torch.is_grad_enabled():  # create_graph=True
        needed = ctx.needs_input_grad
        inputs = ctx.saved_tensors
        return tuple(
            dispatch.differentiable_gradients(_reference_kernel, inputs, needed, grad_velocity)
        )

    grads = backward_op(grad_velocity, *ctx.saved_tensors)
    return tuple(
        grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad, strict=True)
    )


dispatch.define_gradient(op, setup_context=_setup_context, backward=_backward)

_direct_call = direct.direct_call("flow_velocity")
direct_backward = direct.direct_call("flow_velocity_backward")


def _again(flow_time, *saved):
    *field, z, time_tensor = saved
    return _general_call(FlowField(*field), z, flow_time if time_tensor is None else time_tensor)


_record = direct.recorder(direct_backward, direct.rerun(_again))
