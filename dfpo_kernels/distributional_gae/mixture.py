"""Lambda mixture targets: their public function, schema and autograd wiring."""

from __future__ import annotations

import torch
from torch import Tensor

from dfpo_kernels import _checks as checks
from dfpo_kernels import _cpu
from dfpo_kernels import _direct as direct
from dfpo_kernels import _dispatch as dispatch
from dfpo_kernels.distributional_gae import _arguments as arguments
from dfpo_kernels.distributional_gae import reference


def lambda_mixture_targets(
    rewards: Tensor,  # [B, T]
    quantiles: Tensor,  # [B, T, Q]
    mask: Tensor,  # [B, T]
    *,
    gamma: float,
    lam: float | Tensor,  # [B]
    seed: int,
    rows: Tensor | None = None,  # [B]
    bootstrap: Tensor | None = None,  # [B, Q]
    done: Tensor | None = None,  # [B, T]
    mask_mode: str = "carry",
    cu_seqlens: Tensor | None = None,  # [n + 1]
) -> Tensor:  # [B, T, Q]
    """Samples of the TD(lambda) mixture of n-step return distributions, one per particle.

    With z_t the quantiles of token t and t' the token after it that counts, each particle follows
    the return to t' or bootstraps there,

        y_t = r_t + gamma * (1 - done_t) * (y_t' if bit_t else z_t'),   bit_t ~ Bernoulli(lam)

    Unlike ``z + A`` of distributional_gae, which adds several particles' noise and shrinks none of
    it, y has the distribution of a return: its spread is that of the returns. Its mean over the
    bits is the target of distributional_gae at the same lam. lam = 0 is the one-step backup,
    lam = 1 the Monte Carlo return.

    The bits come from a counter-based generator at (seed, row, step, particle): padding side,
    micro-batches, processes, threads and device change nothing. ``row`` is a global sample id, the
    step is the token's index among the row's unmasked tokens ("carry"), or its distance from the
    first unmasked one ("zero", where masked tokens are steps too), or its column ("none"). A bit
    is u < lam with u of 24 random bits, dfpo_kernels/philox.py.

    Args:
        rewards: [B, T].
        quantiles: value particles of each token, [B, T, Q].
        mask: which tokens count, [B, T], bool, integer or floating: nonzero counts.
        gamma: discount in [0, 1].
        lam: probability of following in [0, 1], a number or one per sequence [B].
        seed: in [0, 2^63); may vary without recompiling under torch.compile.
        rows: global sample id of each sequence, int64 [B]; default 0 .. B - 1.
        bootstrap: values after the last column, [B, Q]; default 0.
        done: no value flows across such a token, [B, T], nonzero counts; default none.
        mask_mode: what a masked token is, as in distributional_gae. Under "carry" its target is
            the carried one.
        cu_seqlens: offsets of packed sequences, [n + 1], as in distributional_gae.

    Returns:
        targets, [B, T, Q] in the dtype of quantiles; arithmetic is float32. Differentiable in
        rewards, quantiles and bootstrap.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.
    """
    if cu_seqlens is None and not torch.compiler.is_dynamo_compiling():
        targets = _direct_call(
            _record, rewards, quantiles, mask, gamma, lam, seed, rows, bootstrap, done, mask_mode
        )
        if targets is not None:
            return targets

    return _general_call(
        rewards, quantiles, mask, gamma=gamma, lam=lam, seed=seed, rows=rows, bootstrap=bootstrap,
        done=done, mask_mode=mask_mode, cu_seqlens=cu_seqlens,
    )  # fmt: skip


def _general_call(
    rewards, quantiles, mask, *, gamma, lam, seed, rows, bootstrap, done, mask_mode, cu_seqlens
):
    count, gamma = arguments.check_scan(
        rewards, quantiles, mask, gamma=gamma, bootstrap=bootstrap, done=done,
        mask_mode=mask_mode, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    lam = arguments.check_lam("lam", lam, count, rewards)
    seed = checks.check_integer("seed", seed, 0, 2**63 - 1)

    if rows is None:
        rows = torch.arange(count, device=rewards.device)
    else:
        checks.check_tensor("rows", rows)
        if rows.dtype != torch.int64:
            raise TypeError(f"rows: has dtype {rows.dtype}, must be int64")
        checks.check_shape("rows", rows, (count,), "[B], one id per sequence")
        checks.check_same_device(rewards=rewards, rows=rows)

    if dispatch.runs_reference(rewards, quantiles, bootstrap):
        arguments.check_offsets(cu_seqlens, rewards.shape[0])
        return reference.lambda_mixture_targets(
            rewards, quantiles, mask, gamma=gamma, lam=lam, seed=seed, rows=rows,
            bootstrap=bootstrap, done=done, mask_mode=mask_mode, cu_seqlens=cu_seqlens,
        )  # fmt: skip

    return _op(
        rewards,
        quantiles,
        mask.detach(),
        arguments.lam_rows(lam, count, rewards),
        rows,
        bootstrap,
        None if done is None else done.detach(),
        cu_seqlens,
        dispatch.number(gamma),
        seed,
        mask_mode,
    )


def _fake(rewards, quantiles, mask, lam, rows, bootstrap, done, cu_seqlens, gamma, seed, mask_mode):
    return quantiles.new_empty(quantiles.shape)


def _launch(
    run, rewards, quantiles, mask, lam, rows, bootstrap, done, cu_seqlens, gamma, seed, mask_mode
):
    """Checks offsets, allocates the output and calls ``run`` with the structure MixtureArgs of
    csrc/scan_args.h."""
    arguments.check_offsets(cu_seqlens, rewards.shape[0])
    packed = cu_seqlens is not None
    cu_seqlens = arguments.offsets64(cu_seqlens)
    quantiles = dispatch.with_contiguous_rows(quantiles)
    bootstrap = None if bootstrap is None else dispatch.with_contiguous_rows(bootstrap)
    lam, rows = lam.contiguous(), rows.contiguous()
    targets = quantiles.new_empty(quantiles.shape)
    run(
        (
            arguments.sequences(mask, done, cu_seqlens, quantiles.shape[-1], mask_mode),
            dispatch.tokens(rewards, packed),
            dispatch.tokens(quantiles, packed),
            dispatch.rows(bootstrap),
            dispatch.pointer(lam),
            dispatch.pointer(rows),
            seed,
            gamma,
            dispatch.tokens(targets, packed),
        )
    )

    return targets


def _cpu_kernel(rewards, *args):
    def run(mixture_args):
        _cpu.lambda_mixture_targets(mixture_args, rewards.numel(), torch.get_num_threads())

    return _launch(run, rewards, *args)


def _cuda_kernel(rewards, quantiles, mask, *args):
    *_, cu_seqlens, _gamma, _seed, _mask_mode = args

    def run(mixture_args):
        arguments.launch_scan(
            "lambda_mixture_targets", mixture_args, mask, cu_seqlens, quantiles.shape[-1]
        )

    return _launch(run, rewards, quantiles, mask, *args)


def _reference_kernel(
    rewards, quantiles, mask, lam, rows, bootstrap, done, cu_seqlens, gamma, seed, mask_mode
):
    arguments.check_offsets(cu_seqlens, rewards.shape[0])
    return reference.lambda_mixture_targets(
        rewards, quantiles, mask, gamma=gamma, lam=lam, seed=seed, rows=rows,
        bootstrap=bootstrap, done=done, mask_mode=mask_mode, cu_seqlens=cu_seqlens,
    )  # fmt: skip


_op = dispatch.define_op(
    "lambda_mixture_targets",
    "(Tensor rewards, Tensor quantiles, Tensor mask, Tensor lam, Tensor rows, Tensor? bootstrap,"
    " Tensor? done, Tensor? cu_seqlens, Tensor gamma, SymInt seed, str mask_mode) -> Tensor",
    reference=_reference_kernel,
    fake=_fake,
    cpu=_cpu_kernel,
    numbers=("gamma",),
    **dispatch.cuda_launcher(_cuda_kernel),
)


def _layout(grad_targets, mask, lam):
    full = arguments.gradient_layout(mask, lam, grad_targets.shape[-1], grad_targets.dtype)
    # The mixture takes no next_quantiles.
    return full[:3]


def _backward_fake(grad_targets, mask, lam, rows, done, cu_seqlens, gamma, seed, mask_mode, *wants):
    return arguments.empty_gradients(grad_targets, _layout(grad_targets, mask, lam), wants)


def _launch_backward(
    run, outputs, grad_targets, mask, lam, rows, done, cu_seqlens, gamma, seed, mask_mode, *wants
):
    """Calls ``run`` with the structure MixtureGradArgs of csrc/scan_args.h, to fill ``outputs``."""
    packed = cu_seqlens is not None
    cu_seqlens = arguments.offsets64(cu_seqlens)
    grad_targets = dispatch.with_contiguous_rows(grad_targets)
    rewards, quantiles, bootstrap = (
        output if want else None for output, want in zip(outputs, wants, strict=True)
    )
    lam, rows = lam.contiguous(), rows.contiguous()
    run(
        (
            arguments.sequences(mask, done, cu_seqlens, grad_targets.shape[-1], mask_mode),
            dispatch.tokens(grad_targets, packed),
            dispatch.pointer(lam),
            dispatch.pointer(rows),
            seed,
            gamma,
            dispatch.tokens(rewards, packed),
            dispatch.tokens(quantiles, packed),
            dispatch.pointer(bootstrap),
        )
    )


def _backward_cpu(grad_targets, mask, *args):
    def run(mixture_args):
        _cpu.lambda_mixture_targets_backward(mixture_args, mask.numel(), torch.get_num_threads())

    outputs = _backward_fake(grad_targets, mask, *args)
    _launch_backward(run, outputs, grad_targets, mask, *args)
    return outputs


def _backward_cuda(grad_targets, mask, *args):
    _, _, _, cu_seqlens, _, _, _, want_rewards, _, _ = args
    num_quantiles = grad_targets.shape[-1]

    def run(mixture_args):
        arguments.launch_scan(
            "lambda_mixture_targets_backward", mixture_args, mask, cu_seqlens, num_quantiles
        )

    rewards, *others = _backward_fake(grad_targets, mask, *args)
    groups = arguments.grouped_rewards(rewards, grad_targets.shape[-1])
    _launch_backward(run, (groups[0], *others), grad_targets, mask, *args)
    return (groups.sum(0) if want_rewards else rewards, *others)


def _backward_reference(
    grad_targets, mask, lam, rows, done, cu_seqlens, gamma, seed, mask_mode, *wants
):
    def run(rewards, quantiles, bootstrap):
        targets = reference.lambda_mixture_targets(
            rewards, quantiles, mask, gamma=gamma, lam=lam, seed=seed, rows=rows,
            bootstrap=bootstrap, done=done, mask_mode=mask_mode, cu_seqlens=cu_seqlens,
        )  # fmt: skip
        return (targets,)

    # Linear because seed and rows fix the bits.
    layout = _layout(grad_targets, mask, lam)
    return arguments.linear_gradients(run, (grad_targets,), layout, wants, mask.device)


_backward_op = dispatch.define_op(
    "lambda_mixture_targets_backward",
    "(Tensor grad_targets, Tensor mask, Tensor lam, Tensor rows, Tensor? done,"
    " Tensor? cu_seqlens, Tensor gamma, SymInt seed, str mask_mode, bool want_rewards,"
    " bool want_quantiles, bool want_bootstrap) -> (Tensor, Tensor, Tensor)",
    reference=_backward_reference,
    fake=_backward_fake,
    cpu=_backward_cpu,
    numbers=("gamma",),
    **dispatch.cuda_launcher(_backward_cuda),
    public=False,
)
dispatch.forbid_gradient(_backward_op)


def _direct_general(grads, saved, options, needed):
    mask, lam, rows, done = saved
    gamma, lam_number, seed, mask_mode = options
    sequences = mask.shape[0]
    lam = arguments.lam_rows(lam_number if lam is None else lam, sequences, mask)
    rows = torch.arange(sequences) if rows is None else rows
    gradients = _backward_op(
        *grads, mask, lam, rows, done, None, dispatch.number(gamma), seed, mask_mode, *needed
    )
    return [gradient if need else None for gradient, need in zip(gradients, needed, strict=True)]


def _setup_context(ctx, inputs, output):
    rewards, quantiles, mask, lam, rows, bootstrap, done, cu_seqlens, *rest = inputs
    gamma, ctx.seed, ctx.mask_mode = rest
    ctx.save_for_backward(mask, lam, rows, done, cu_seqlens, gamma)
    differentiable = (rewards, quantiles, bootstrap)
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in differentiable]


def _backward(ctx, grad_targets):
    if grad_targets is None:
        return (None,) * 11
    wants = [ctx.needs_input_grad[index] for index in (0, 1, 5)]
    mask, lam, rows, done, cu_seqlens, gamma = ctx.saved_tensors
    grads = _backward_op(
        grad_targets, mask, lam, rows, done, cu_seqlens, gamma, ctx.seed, ctx.mask_mode, *wants
    )
    rewards, quantiles, bootstrap = (
        grad.to(dtype) if want else None
        for grad, dtype, want in zip(grads, ctx.dtypes, wants, strict=True)
    )

    return (
        rewards, quantiles, None, None, None, bootstrap, None, None, None, None, None,
    )  # fmt: skip


dispatch.define_gradient(_op, setup_context=_setup_context, backward=_backward)

_direct_call = direct.direct_call("lambda_mixture_targets")
_record = direct.recorder(
    direct.direct_call("lambda_mixture_targets_backward"), _direct_general, saves_inputs=False
)
