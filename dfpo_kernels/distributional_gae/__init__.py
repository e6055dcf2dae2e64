"""Distributional GAE: its public function, schema and autograd wiring."""

from __future__ import annotations

import torch
from torch import Tensor

from dfpo_kernels import _checks as checks
from dfpo_kernels import _cpu
from dfpo_kernels import _direct as direct
from dfpo_kernels import _dispatch as dispatch
from dfpo_kernels.distributional_gae import _arguments as arguments
from dfpo_kernels.distributional_gae import reference
from dfpo_kernels.distributional_gae.mixture import lambda_mixture_targets

__all__ = ["distributional_gae", "lambda_mixture_targets"]


def distributional_gae(
    rewards: Tensor,  # [B, T]
    quantiles: Tensor,  # [B, T, Q]
    mask: Tensor,  # [B, T]
    *,
    gamma: float,
    lam: float | Tensor,  # [B]
    target_lam: float | Tensor | None = None,  # [B]
    bootstrap: Tensor | None = None,  # [B, Q]
    done: Tensor | None = None,  # [B, T]
    next_quantiles: Tensor | None = None,  # [B, T, Q]
    mask_mode: str = "carry",
    cu_seqlens: Tensor | None = None,  # [n + 1]
) -> tuple[Tensor, Tensor]:  # [B, T, Q], [B, T, Q]
    """Generalised advantage estimation of every particle of a value distribution, in one pass.

    With z_t the quantiles of token t, t' the token after it that counts, and for each particle

        delta_t = r_t + gamma * (1 - done_t) * z_t' - z_t
        A_t     = delta_t + gamma * lam * (1 - done_t) * A_t'

    advantages = A at ``lam``, targets = z + A at ``target_lam``. Q = 1 is scalar GAE.

    What a masked token is:

        mask_mode  reward, values     value and trace  its advantage  its target     as in
        "carry"    no step            pass through     the carried A  z_t + that A   verl, NeMo-RL
        "zero"     0, else a step     as at any step   A_t            A_t            OpenRLHF,
                                                                                     TRL <= 1.12
        "none"     as they are        as at any step   A_t            z_t + A_t      slime, torchrl
                                                                                     (next_quantiles)

    Nothing at a masked token reaches an unmasked one under "carry" and "zero", not even a NaN; a
    masked token's done counts under "zero" (it is a step) and not under "carry". torchrl's
    truncation, done without terminated, is the start of a new sequence: see cu_seqlens.

    Args:
        rewards: [B, T].
        quantiles: value particles of each token, [B, T, Q].
        mask: which tokens count, [B, T], bool, integer or floating: nonzero counts.
        gamma: discount in [0, 1].
        lam: trace of the advantages in [0, 1], a number or one per sequence [B].
        target_lam: trace of the targets, likewise; default ``lam``.
        bootstrap: values after the last column, [B, Q]; default 0.
        done: no value flows across such a token, [B, T], nonzero counts; default none.
        next_quantiles: explicit successor values, [B, T, Q], in place of the next token's and of
            ``bootstrap``.
        mask_mode: "carry", "zero" or "none", see above.
        cu_seqlens: offsets of packed sequences, [n + 1] int32 or int64, from 0 to N. Then tensors
            of shape [B, T, ...] are [N, ...] and those of shape [B, ...] are [n, ...]. Checking
            them makes a GPU wait.

    Returns:
        advantages and targets, [B, T, Q] in the dtype of quantiles; arithmetic is float32.
        Differentiable in rewards, quantiles, bootstrap and next_quantiles.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Source: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage
    estimation", arXiv 1506.02438; per particle as in FlowCritic, arXiv 2510.22686.
    """
    if cu_seqlens is None and not torch.compiler.is_dynamo_compiling():
        outputs = _direct_call(
            _record, rewards, quantiles, mask, gamma, lam, target_lam, bootstrap, done,
            next_quantiles, mask_mode,
        )  # fmt: skip
        if outputs is not None:
            return outputs

    return _general_call(
        rewards, quantiles, mask, gamma=gamma, lam=lam, target_lam=target_lam, bootstrap=bootstrap,
        done=done, next_quantiles=next_quantiles, mask_mode=mask_mode, cu_seqlens=cu_seqlens,
    )  # fmt: skip


def _general_call(
    rewards, quantiles, mask, *, gamma, lam, target_lam, bootstrap, done, next_quantiles,
    mask_mode, cu_seqlens,
):  # fmt: skip
    count, gamma = arguments.check_scan(
        rewards, quantiles, mask, gamma=gamma, bootstrap=bootstrap, done=done,
        mask_mode=mask_mode, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    lam = arguments.check_lam("lam", lam, count, rewards)
    if target_lam is not None:
        target_lam = arguments.check_lam("target_lam", target_lam, count, rewards)

    if next_quantiles is not None:
        checks.check_float_tensor("next_quantiles", next_quantiles)
        checks.check_shape("next_quantiles", next_quantiles, quantiles.shape, "quantiles' shape")
        checks.check_same_device(rewards=rewards, next_quantiles=next_quantiles)
        if bootstrap is not None:
            raise ValueError(
                "bootstrap: is given beside next_quantiles, must be None (the last column of "
                "next_quantiles is the value after the last token)"
            )

    if dispatch.runs_reference(rewards, quantiles, bootstrap, next_quantiles):
        arguments.check_offsets(cu_seqlens, rewards.shape[0])
        return reference.distributional_gae(
            rewards, quantiles, mask, gamma=gamma, lam=lam, target_lam=target_lam,
            bootstrap=bootstrap, done=done, next_quantiles=next_quantiles, mask_mode=mask_mode,
            cu_seqlens=cu_seqlens,
        )  # fmt: skip

    return _op(
        rewards,
        quantiles,
        mask.detach(),
        arguments.lam_rows(lam, count, rewards),
        None if target_lam is None else arguments.lam_rows(target_lam, count, rewards),
        bootstrap,
        None if done is None else done.detach(),
        next_quantiles,
        cu_seqlens,
        dispatch.number(gamma),
        mask_mode,
    )


def _fake(
    rewards, quantiles, mask, lam, target_lam, bootstrap, done, next_quantiles, cu_seqlens,
    gamma, mask_mode,
):  # fmt: skip
    return quantiles.new_empty(quantiles.shape), quantiles.new_empty(quantiles.shape)


def _launch(
    run, rewards, quantiles, mask, lam, target_lam, bootstrap, done, next_quantiles, cu_seqlens,
    gamma, mask_mode,
):  # fmt: skip
    """Checks offsets, allocates outputs and calls ``run`` with the structure GaeArgs of
    csrc/scan_args.h."""
    arguments.check_offsets(cu_seqlens, rewards.shape[0])
    packed = cu_seqlens is not None
    cu_seqlens = arguments.offsets64(cu_seqlens)
    quantiles = dispatch.with_contiguous_rows(quantiles)
    if next_quantiles is not None:
        next_quantiles = dispatch.with_contiguous_rows(next_quantiles)
    if bootstrap is not None:
        bootstrap = dispatch.with_contiguous_rows(bootstrap)
    lam = lam.contiguous()
    target_lam = None if target_lam is None else target_lam.contiguous()
    advantages = quantiles.new_empty(quantiles.shape)
    targets = quantiles.new_empty(quantiles.shape)
    run(
        (
            arguments.sequences(mask, done, cu_seqlens, quantiles.shape[-1], mask_mode),
            dispatch.tokens(rewards, packed),
            dispatch.tokens(quantiles, packed),
            dispatch.tokens(next_quantiles, packed),
            dispatch.rows(bootstrap),
            dispatch.pointer(lam),
            dispatch.pointer(target_lam),
            gamma,
            dispatch.tokens(advantages, packed),
            dispatch.tokens(targets, packed),
        )
    )

    return advantages, targets


def _cpu_kernel(rewards, *args):
    def run(gae_args):
        _cpu.distributional_gae(gae_args, rewards.numel(), torch.get_num_threads())

    return _launch(run, rewards, *args)


def _cuda_kernel(rewards, quantiles, mask, *args):
    *_, cu_seqlens, _gamma, _mask_mode = args

    def run(gae_args):
        arguments.launch_scan("distributional_gae", gae_args, mask, cu_seqlens, quantiles.shape[-1])

    return _launch(run, rewards, quantiles, mask, *args)


def _reference_kernel(
    rewards, quantiles, mask, lam, target_lam, bootstrap, done, next_quantiles, cu_seqlens,
    gamma, mask_mode,
):  # fmt: skip
    arguments.check_offsets(cu_seqlens, rewards.shape[0])
    return reference.distributional_gae(
        rewards, quantiles, mask, gamma=gamma, lam=lam, target_lam=target_lam,
        bootstrap=bootstrap, done=done, next_quantiles=next_quantiles, mask_mode=mask_mode,
        cu_seqlens=cu_seqlens,
    )  # fmt: skip


_op = dispatch.define_op(
    "distributional_gae",
    "(Tensor rewards, Tensor quantiles, Tensor mask, Tensor lam, Tensor? target_lam,"
    " Tensor? bootstrap, Tensor? done, Tensor? next_quantiles, Tensor? cu_seqlens, Tensor gamma,"
    " str mask_mode) -> (Tensor, Tensor)",
    reference=_reference_kernel,
    fake=_fake,
    cpu=_cpu_kernel,
    numbers=("gamma",),
    **dispatch.cuda_launcher(_cuda_kernel),
)


def _backward_fake(
    grad_advantages, grad_targets, mask, lam, target_lam, done, cu_seqlens, gamma, mask_mode,
    num_quantiles, explicit, *wants,
):  # fmt: skip
    grad = grad_targets if grad_advantages is None else grad_advantages
    layout = arguments.gradient_layout(mask, lam, num_quantiles, grad.dtype)
    return arguments.empty_gradients(grad, layout, wants)


def _launch_backward(
    run, outputs, grad_advantages, grad_targets, mask, lam, target_lam, done, cu_seqlens, gamma,
    mask_mode, num_quantiles, explicit, *wants,
):  # fmt: skip
    """Calls ``run`` with the structure GaeGradArgs of csrc/scan_args.h, to fill ``outputs``."""
    packed = cu_seqlens is not None
    cu_seqlens = arguments.offsets64(cu_seqlens)
    grad_advantages, grad_targets = (
        None if grad is None else dispatch.with_contiguous_rows(grad)
        for grad in (grad_advantages, grad_targets)
    )
    rewards, quantiles, bootstrap, successors = (
        output if want else None for output, want in zip(outputs, wants, strict=True)
    )
    lam = lam.contiguous()
    target_lam = None if target_lam is None else target_lam.contiguous()
    run(
        (
            arguments.sequences(mask, done, cu_seqlens, num_quantiles, mask_mode),
            dispatch.tokens(grad_advantages, packed),
            dispatch.tokens(grad_targets, packed),
            dispatch.pointer(lam),
            dispatch.pointer(target_lam),
            gamma,
            explicit,
            dispatch.tokens(rewards, packed),
            dispatch.tokens(quantiles, packed),
            dispatch.tokens(successors, packed),
            dispatch.pointer(bootstrap),
        )
    )


def _backward_cpu(grad_advantages, grad_targets, mask, *args):
    def run(gae_args):
        _cpu.distributional_gae_backward(gae_args, mask.numel(), torch.get_num_threads())

    outputs = _backward_fake(grad_advantages, grad_targets, mask, *args)
    _launch_backward(run, outputs, grad_advantages, grad_targets, mask, *args)
    return outputs


def _backward_cuda(grad_advantages, grad_targets, mask, *args):
    _, _, _, cu_seqlens, _, _, num_quantiles, _, want_rewards, _, _, _ = args

    def run(gae_args):
        arguments.launch_scan(
            "distributional_gae_backward", gae_args, mask, cu_seqlens, num_quantiles
        )

    rewards, *others = _backward_fake(grad_advantages, grad_targets, mask, *args)
    groups = arguments.grouped_rewards(rewards, num_quantiles)
    outputs = (groups[0], *others)
    _launch_backward(run, outputs, grad_advantages, grad_targets, mask, *args)
    return (groups.sum(0) if want_rewards else rewards, *others)


def _backward_reference(
    grad_advantages, grad_targets, mask, lam, target_lam, done, cu_seqlens, gamma, mask_mode,
    num_quantiles, explicit, *wants,
):  # fmt: skip
    def run(rewards, quantiles, bootstrap, successors):
        return reference.distributional_gae(
            rewards, quantiles, mask, gamma=gamma, lam=lam, target_lam=target_lam,
            bootstrap=bootstrap, done=done, next_quantiles=successors if explicit else None,
            mask_mode=mask_mode, cu_seqlens=cu_seqlens,
        )  # fmt: skip

    grad = grad_targets if grad_advantages is None else grad_advantages
    layout = arguments.gradient_layout(mask, lam, num_quantiles, grad.dtype)
    return arguments.linear_gradients(
        run, (grad_advantages, grad_targets), layout, wants, mask.device
    )


_backward_op = dispatch.define_op(
    "distributional_gae_backward",
    "(Tensor? grad_advantages, Tensor? grad_targets, Tensor mask, Tensor lam, Tensor? target_lam,"
    " Tensor? done, Tensor? cu_seqlens, Tensor gamma, str mask_mode, SymInt num_quantiles,"
    " bool explicit, bool want_rewards, bool want_quantiles, bool want_bootstrap, bool want_next)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference=_backward_reference,
    fake=_backward_fake,
    cpu=_backward_cpu,
    numbers=("gamma",),
    **dispatch.cuda_launcher(_backward_cuda),
    public=False,
)
dispatch.forbid_gradient(_backward_op)


def _direct_general(grads, saved, options, needed):
    mask, lam, target_lam, done = saved
    gamma, lam_number, target_number, mask_mode, num_quantiles, explicit = options
    sequences = mask.shape[0]
    lam = arguments.lam_rows(lam_number if lam is None else lam, sequences, mask)
    if target_number is not None:
        target_lam = arguments.lam_rows(target_number, sequences, mask)
    gradients = _backward_op(
        *grads, mask, lam, target_lam, done, None, dispatch.number(gamma), mask_mode,
        num_quantiles, explicit, *needed,
    )  # fmt: skip
    return [gradient if need else None for gradient, need in zip(gradients, needed, strict=True)]


def _setup_context(ctx, inputs, output):
    rewards, quantiles, mask, lam, target_lam, bootstrap, done, next_quantiles, *rest = inputs
    cu_seqlens, gamma, ctx.mask_mode = rest
    ctx.save_for_backward(mask, lam, target_lam, done, cu_seqlens, gamma)
    ctx.num_quantiles = quantiles.shape[-1]
    ctx.explicit = next_quantiles is not None
    differentiable = (rewards, quantiles, bootstrap, next_quantiles)
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in differentiable]


def _backward(ctx, grad_advantages, grad_targets):
    if grad_advantages is None and grad_targets is None:
        return (None,) * 11
    wants = [ctx.needs_input_grad[index] for index in (0, 1, 5, 7)]
    mask, lam, target_lam, done, cu_seqlens, gamma = ctx.saved_tensors
    grads = _backward_op(
        grad_advantages, grad_targets, mask, lam, target_lam, done, cu_seqlens, gamma,
        ctx.mask_mode, ctx.num_quantiles, ctx.explicit, *wants,
    )  # fmt: skip
    rewards, quantiles, bootstrap, successors = (
        grad.to(dtype) if want else None
        for grad, dtype, want in zip(grads, ctx.dtypes, wants, strict=True)
    )

    return (
        rewards, quantiles, None, None, None, bootstrap, None, successors, None, None, None,
    )  # fmt: skip


dispatch.define_gradient(_op, setup_context=_setup_context, backward=_backward)

_direct_call = direct.direct_call("distributional_gae")
_record = direct.recorder(
    direct.direct_call("distributional_gae_backward"), _direct_general, saves_inputs=False
)
