"""Quantile Huber loss: its public function, schema and autograd wiring."""

from __future__ import annotations

import torch
from torch import Tensor

from dfpo_kernels import _checks as checks
from dfpo_kernels import _cpu
from dfpo_kernels import _direct as direct
from dfpo_kernels import _dispatch as dispatch
from dfpo_kernels.quantile_huber_loss import reference

__all__ = ["quantile_huber_loss"]

QUANTILE_REDUCTIONS = ("mean", "sum")


def quantile_huber_loss(
    quantiles: Tensor,  # [..., Q]
    targets: Tensor,  # [..., P]
    *,
    taus: Tensor | None = None,  # [Q]
    kappa: float = 0.05,
    quantile_reduction: str = "mean",
) -> Tensor:  # [...]
    """Quantile regression of ``quantiles`` on samples ``targets``, all pairs, one loss per row.

    With u = target_p - quantile_i,

        loss = reduce_i mean_p |tau_i - 1{u < 0}| * H(u)
        H(u) = u^2 / (2 kappa)   if |u| <= kappa,   |u| - kappa / 2   otherwise;   H(u) = |u| at 0

    Keep ``kappa`` small against the spread of returns (0.05 of the reward range): at kappa of the
    order of the range this is expectile regression and the mean is biased.

    Args:
        quantiles: values at quantile levels, [..., Q], in units of return; any order.
        targets: samples of the return, [..., P], same leading shape; P may differ from Q.
        taus: quantile levels in (0, 1), [Q]; default the midpoints (i + 1/2) / Q.
        kappa: Huber threshold in units of return, >= 0; 0 is the pinball loss.
        quantile_reduction: "mean" or "sum" over the Q quantiles.

    Returns:
        float32 [...], unreduced over rows (masks and normalisers are the caller's).
        Differentiable in quantiles and targets. Extra memory is O(rows * (Q + P)).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Source: Dabney et al. 2018, "Distributional RL with quantile regression", arXiv 1710.10044.
    """
    if not torch.compiler.is_dynamo_compiling():
        loss = _direct_call(_record, quantiles, targets, taus, kappa, quantile_reduction)
        if loss is not None:
            return loss

    return _general_call(
        quantiles, targets, taus=taus, kappa=kappa, quantile_reduction=quantile_reduction
    )


def _general_call(quantiles, targets, *, taus, kappa, quantile_reduction):
    checks.check_float_tensor("quantiles", quantiles)
    checks.check_float_tensor("targets", targets)
    checks.check_rank("quantiles", quantiles, 1, "[..., Q]")
    checks.check_rank("targets", targets, 1, "[..., P]")
    lead, num_quantiles, num_targets = quantiles.shape[:-1], quantiles.shape[-1], targets.shape[-1]
    if num_quantiles < 1:
        raise ValueError("quantiles: has Q = 0, must have at least one quantile")
    if num_targets < 1:
        raise ValueError("targets: has P = 0, must have at least one target")
    checks.check_shape("targets", targets, (*lead, num_targets), "[..., P], rows of quantiles")
    kappa = checks.check_number("kappa", kappa, 0.0, 1e30)
    checks.check_choice("quantile_reduction", quantile_reduction, QUANTILE_REDUCTIONS)
    if taus is not None:
        checks.check_float_tensor("taus", taus)
        checks.check_shape("taus", taus, (num_quantiles,), "[Q]")
    checks.check_same_device(quantiles=quantiles, targets=targets, taus=taus)

    # Levels are constants in every path.
    taus = None if taus is None else taus.detach()
    if dispatch.runs_reference(quantiles, targets):
        return reference.quantile_huber_loss(
            quantiles, targets, taus=taus, kappa=kappa, quantile_reduction=quantile_reduction
        )

    levels = reference.midpoints(num_quantiles, quantiles) if taus is None else taus.float()
    differentiate = torch.is_grad_enabled()
    loss, _, _ = _op(
        quantiles.reshape(-1, num_quantiles),
        targets.reshape(-1, num_targets),
        levels,
        dispatch.number(kappa),
        quantile_reduction == "mean",
        differentiate and quantiles.requires_grad,
        differentiate and targets.requires_grad,
    )

    return loss.reshape(lead)


def _fake(quantiles, targets, taus, kappa, mean, quantile_grad, target_grad):
    rows = quantiles.shape[0]
    loss = quantiles.new_empty((rows,), dtype=torch.float32)
    return (
        loss,
        loss.new_empty((rows, quantiles.shape[1]) if quantile_grad else (0,)),
        loss.new_empty((rows, targets.shape[1]) if target_grad else (0,)),
    )


def _cpu_kernel(quantiles, targets, taus, kappa, mean, quantile_grad, target_grad):
    quantiles = dispatch.with_contiguous_rows(quantiles)
    targets = dispatch.with_contiguous_rows(targets)
    taus = taus.contiguous()
    outputs = _fake(quantiles, targets, taus, kappa, mean, quantile_grad, target_grad)
    loss, grad_quantiles, grad_targets = outputs
    _cpu.quantile_huber_loss(
        dispatch.rows(quantiles),
        dispatch.rows(targets),
        dispatch.pointer(taus),
        dispatch.pointer(loss),
        dispatch.pointer(grad_quantiles) if quantile_grad else 0,
        dispatch.pointer(grad_targets) if target_grad else 0,
        quantiles.shape[0],
        quantiles.shape[1],
        targets.shape[1],
        kappa,
        1.0 / quantiles.shape[1] if mean else 1.0,
        torch.get_num_threads(),
    )

    return outputs


def _reference_kernel(quantiles, targets, taus, kappa, mean, quantile_grad, target_grad):
    def run(quantiles, targets):
        return reference.quantile_huber_loss(
            quantiles,
            targets,
            taus=taus,
            kappa=kappa,
            quantile_reduction="mean" if mean else "sum",
        )

    # Below the dispatcher autograd records nothing; torch.func does.
    loss, vjp = torch.func.vjp(run, quantiles.float(), targets.float())
    grad_quantiles, grad_targets = vjp(torch.ones_like(loss))
    return (
        loss,
        grad_quantiles if quantile_grad else loss.new_empty((0,)),
        grad_targets if target_grad else loss.new_empty((0,)),
    )


_op = dispatch.define_op(
    "quantile_huber_loss",
    "(Tensor quantiles, Tensor targets, Tensor taus, Tensor kappa, bool mean, bool quantile_grad,"
    " bool target_grad) -> (Tensor, Tensor, Tensor)",
    reference=_reference_kernel,
    fake=_fake,
    cpu=_cpu_kernel,
    numbers=("kappa",),
    **dispatch.triton_launcher("quantile_huber_loss", "quantile_huber_loss"),
)


def _setup_context(ctx, inputs, output):
    quantiles, targets, taus, kappa, mean, _, _ = inputs
    _, grad_quantiles, grad_targets = output
    ctx.mark_non_differentiable(grad_quantiles, grad_targets)
    ctx.save_for_backward(grad_quantiles, grad_targets, quantiles, targets, taus, kappa)
    ctx.reduction = "mean" if mean else "sum"


def _times_left(grad_loss, left, inputs, needed):
    """The forward pass has left d loss / d input; what remains is the chain rule's product."""
    grad_loss = grad_loss.unsqueeze(-1)
    return [
        (grad_loss * by_input).to(tensor.dtype) if need else None
        for by_input, tensor, need in zip(left, inputs, needed, strict=True)
    ]


def _backward(ctx, grad_loss, _grad_quantiles, _grad_targets):
    *saved, quantiles, targets, taus, kappa = ctx.saved_tensors
    inputs, needed = (quantiles, targets), ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():  # create_graph=True: what was left is a constant to autograd

        def run(quantiles, targets):
            return reference.quantile_huber_loss(
                quantiles, targets, taus=taus, kappa=kappa.item(), quantile_reduction=ctx.reduction
            )

        grads = dispatch.differentiable_gradients(run, inputs, needed, grad_loss)
    else:
        grads = _times_left(grad_loss, saved, inputs, needed)

    return (*grads, None, None, None, None, None)


dispatch.define_gradient(_op, setup_context=_setup_context, backward=_backward)

_direct_call = direct.direct_call("quantile_huber_loss")


def _direct_backward(grads, saved, _options, needed):
    *inputs, by_quantiles, by_targets, _ = saved
    return _times_left(*grads, (by_quantiles, by_targets), inputs, needed)


def _again(options, *saved):
    quantiles, targets, _, _, taus = saved
    kappa, reduction = options
    return _general_call(quantiles, targets, taus=taus, kappa=kappa, quantile_reduction=reduction)


_record = direct.recorder(_direct_backward, direct.rerun(_again))
