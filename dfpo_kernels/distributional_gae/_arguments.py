"""What the reverse scans have in common: their argument checks and how kernels see sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dfpo_kernels import _checks as checks
from dfpo_kernels import _dispatch as dispatch

# Codes as in csrc/scan_args.h.
MASK_MODES = {"carry": 0, "zero": 1, "none": 2}


def check_scan(
    rewards: Tensor,
    quantiles: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    bootstrap: Tensor | None,
    done: Tensor | None,
    mask_mode: str,
    cu_seqlens: Tensor | None,
) -> tuple[int, float]:
    """Checks what both scans take and returns the number of sequences and gamma as a number."""
    checks.check_float_tensor("rewards", rewards)
    checks.check_float_tensor("quantiles", quantiles)
    check_flags("mask", mask)
    gamma = checks.check_number("gamma", gamma, 0.0, 1.0)
    checks.check_choice("mask_mode", mask_mode, tuple(MASK_MODES))
    rank, axes = (2, "[B, T]") if cu_seqlens is None else (1, "[N] with cu_seqlens")
    if rewards.dim() != rank:
        raise ValueError(f"rewards: has shape {checks.show_shape(rewards.shape)}, must be {axes}")

    if quantiles.dim() != rank + 1 or quantiles.shape[:-1] != rewards.shape:
        raise ValueError(
            f"quantiles: has shape {checks.show_shape(quantiles.shape)}, must be "
            f"{checks.show_shape((*rewards.shape, 'Q'))} (rewards' shape and quantiles)"
        )

    if quantiles.shape[-1] < 1:
        raise ValueError("quantiles: has Q = 0, must have at least one quantile")
    checks.check_shape("mask", mask, rewards.shape, "rewards' shape")
    sequences = rewards.shape[0]

    if cu_seqlens is not None:
        checks.check_tensor("cu_seqlens", cu_seqlens)
        if cu_seqlens.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"cu_seqlens: has dtype {cu_seqlens.dtype}, must be int32 or int64")
        if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
            raise ValueError(
                f"cu_seqlens: has shape {checks.show_shape(cu_seqlens.shape)}, must be [n + 1]"
            )
        sequences = cu_seqlens.shape[0] - 1

    if done is not None:
        check_flags("done", done)
        checks.check_shape("done", done, rewards.shape, "rewards' shape")
    if bootstrap is not None:
        checks.check_float_tensor("bootstrap", bootstrap)
        shape = (sequences, quantiles.shape[-1])
        checks.check_shape("bootstrap", bootstrap, shape, "[B, Q]")

    checks.check_same_device(
        rewards=rewards, quantiles=quantiles, mask=mask, bootstrap=bootstrap, done=done,
        cu_seqlens=cu_seqlens,
    )  # fmt: skip
    return sequences, gamma


def check_flags(name: str, value: object) -> None:
    checks.check_tensor(name, value)
    if value.dtype.is_complex:
        raise TypeError(f"{name}: has dtype {value.dtype}, must be bool, integer or floating")


def check_lam(name: str, lam: float | Tensor, sequences: int, like: Tensor) -> float | Tensor:
    """A number in [0, 1], or one per sequence: a constant, whose values are not looked at."""
    if not isinstance(lam, Tensor):
        return checks.check_number(name, lam, 0.0, 1.0)
    checks.check_float_tensor(name, lam)
    checks.check_shape(name, lam, (sequences,), "[B], or a number")
    checks.check_same_device(rewards=like, **{name: lam})
    return lam.detach()


def lam_rows(lam: float | Tensor, sequences: int, like: Tensor) -> Tensor:  # [B] float32
    if isinstance(lam, Tensor):
        return lam.to(torch.float32)
    return torch.full((sequences,), lam, dtype=torch.float32, device=like.device)


def check_offsets(cu_seqlens: Tensor | None, total: int) -> None:
    """Offsets are looked at inside the op, where their values are known even under
    torch.compile; on a GPU this waits for the device."""
    if cu_seqlens is None:
        return
    offsets = cu_seqlens.cpu()
    if offsets[0] != 0:
        raise ValueError(f"cu_seqlens: starts at {offsets[0]}, must start at 0")
    if offsets[-1] != total:
        raise ValueError(f"cu_seqlens: ends at {offsets[-1]}, must end at {total}, rewards' size")
    if bool((offsets.diff() < 0).any()):
        raise ValueError("cu_seqlens: decreases, must not decrease")


def sequences(
    mask: Tensor,  # [B, T] or [N]
    done: Tensor | None,  # like mask
    cu_seqlens: Tensor | None,  # [n + 1] int64
    num_quantiles: int,
    mask_mode: str,
) -> tuple:
    """The structure Sequences of csrc/scan_args.h."""
    packed = cu_seqlens is not None
    return (
        cu_seqlens.shape[0] - 1 if packed else mask.shape[0],
        0 if packed else mask.shape[1],
        dispatch.pointer(cu_seqlens),
        num_quantiles,
        MASK_MODES[mask_mode],
        dispatch.flags(mask, packed),
        dispatch.flags(done, packed),
    )


def offsets64(cu_seqlens: Tensor | None) -> Tensor | None:
    return None if cu_seqlens is None else cu_seqlens.to(torch.int64).contiguous()


def launch_scan(
    name: str,
    scan_args: tuple,
    mask: Tensor,  # [B, T] or [N]
    cu_seqlens: Tensor | None,  # [n + 1]
    num_quantiles: int,
) -> None:
    """Launches a scan of the CUDA module, with the scratch memory through which its blocks pass
    on what they know of a sequence."""
    packed = cu_seqlens is not None
    count, length = (cu_seqlens.shape[0] - 1, 0) if packed else mask.shape
    _, size = dispatch.CUDA_MODULE.scan_plan(count, length, packed, mask.numel(), num_quantiles)
    scratch = torch.empty(size, dtype=torch.uint8, device=mask.device)
    dispatch.launch_cuda(name, mask, scan_args, scratch.data_ptr(), size, mask.numel())


# Shape and dtype of each gradient: of rewards, quantiles, bootstrap and next_quantiles.
Layout = Sequence[tuple[Sequence[int], torch.dtype]]


def gradient_layout(mask: Tensor, lam: Tensor, num_quantiles: int, dtype: torch.dtype) -> Layout:
    """Gradients of quantiles in the dtype of their output's, the others in float32."""
    full = (*mask.shape, num_quantiles)
    bootstrap = (lam.shape[0], num_quantiles)
    return (
        (mask.shape, torch.float32),
        (full, dtype),
        (bootstrap, torch.float32),
        (full, torch.float32),
    )


def empty_gradients(like: Tensor, layout: Layout, wants: Sequence[bool]) -> tuple[Tensor, ...]:
    """Uninitialised gradients, [0] for those that nobody wants."""
    return tuple(
        like.new_empty(shape if want else (0,), dtype=dtype)
        for (shape, dtype), want in zip(layout, wants, strict=True)
    )


# Particles whose gradients of a reward csrc/cuda/scan.h adds up in one warp.
PARTICLES_PER_GROUP = 32


def grouped_rewards(grad: Tensor, num_quantiles: int) -> Tensor:
    """Room for the gradient of the rewards per group of particles, [groups, *grad.shape]."""
    groups = -(-num_quantiles // PARTICLES_PER_GROUP)
    return grad.new_empty((groups, *grad.shape))


def linear_gradients(
    scan: Callable[..., tuple[Tensor, ...]],
    grads: Sequence[Tensor | None],  # of the scan's outputs
    layout: Layout,
    wants: Sequence[bool],
    device: torch.device,
) -> tuple[Tensor, ...]:
    """Gradients of a scan that is linear in its inputs, so that any point of it will do.

    By torch.func: below the dispatcher autograd records nothing.
    """
    outputs, vjp = torch.func.vjp(scan, *(torch.zeros(shape, device=device) for shape, _ in layout))
    gradients = vjp(
        tuple(
            torch.zeros_like(output) if grad is None else grad.float()
            for grad, output in zip(grads, outputs, strict=True)
        )
    )

    return tuple(
        grad.to(dtype) if want else grad.new_empty((0,), dtype=dtype)
        for grad, (_, dtype), want in zip(gradients, layout, wants, strict=True)
    )
