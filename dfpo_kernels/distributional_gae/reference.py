"""The definitions of the reverse scans in plain PyTorch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dfpo_kernels import philox


class Steps(NamedTuple):
    """What each token is to the scan, after mask, mask_mode and done."""

    skip: Tensor  # [B, T] bool: no step, value and trace pass through
    blank: Tensor  # [B, T] bool: a step whose reward and values are 0
    stop: Tensor  # [B, T] bool: a step that no later value flows into
    counter: Tensor  # [B, T] int64: steps of the row before this token, for random numbers


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
    if cu_seqlens is not None:
        token, present = padding(cu_seqlens, rewards.shape[0])
        mask = mask[token]
        done = None if done is None else done[token]
        next_quantiles = None if next_quantiles is None else next_quantiles[token]
        rewards, quantiles = rewards[token], quantiles[token]
    else:
        present = torch.ones_like(mask, dtype=torch.bool)

    steps = find_steps(mask, done, present, mask_mode)
    rewards, values = blanked(rewards, quantiles, steps, bootstrap, next_quantiles)
    if next_quantiles is not None:
        next_quantiles = next_quantiles.to(values.dtype).masked_fill(steps.blank.unsqueeze(-1), 0)

    value = _start(values, bootstrap)
    advantage = trace = torch.zeros_like(value)
    decay = gamma * _per_row(lam, values.dtype)
    target_decay = decay if target_lam is None else gamma * _per_row(target_lam, values.dtype)
    advantages, traces = [], []

    for t in reversed(range(values.shape[1])):
        skip, stop = steps.skip[:, t, None], steps.stop[:, t, None]
        successor = value if next_quantiles is None else next_quantiles[:, t]
        delta = rewards[:, t, None] + gamma * successor.masked_fill(stop, 0) - values[:, t]
        advantage = torch.where(skip, advantage, delta + decay * advantage.masked_fill(stop, 0))
        trace = torch.where(skip, trace, delta + target_decay * trace.masked_fill(stop, 0))
        value = torch.where(skip, value, values[:, t])
        advantages.append(advantage)
        traces.append(trace)

    advantages = _stack(advantages, values)
    targets = values + _stack(traces, values)
    if cu_seqlens is not None:
        advantages, targets = advantages[present], targets[present]
    return advantages.to(quantiles.dtype), targets.to(quantiles.dtype)


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
    if cu_seqlens is not None:
        token, present = padding(cu_seqlens, rewards.shape[0])
        mask = mask[token]
        done = None if done is None else done[token]
        rewards, quantiles = rewards[token], quantiles[token]
    else:
        present = torch.ones_like(mask, dtype=torch.bool)

    steps = find_steps(mask, done, present, mask_mode)
    rewards, values = blanked(rewards, quantiles, steps, bootstrap)
    if rows is None:
        rows = torch.arange(rewards.shape[0], device=rewards.device)

    # Uniform numbers are compared in float32, as in the kernels.
    lam = _per_row(lam, torch.float32)
    value = target = _start(values, bootstrap)
    targets = []

    for t in reversed(range(values.shape[1])):
        skip, stop = steps.skip[:, t, None], steps.stop[:, t, None]
        follow = draw(seed, rows, steps.counter[:, t], values.shape[-1]) < lam
        successor = torch.where(follow, target, value).masked_fill(stop, 0)
        target = torch.where(skip, target, rewards[:, t, None] + gamma * successor)
        value = torch.where(skip, value, values[:, t])
        targets.append(target)

    targets = _stack(targets, values)
    if cu_seqlens is not None:
        targets = targets[present]
    return targets.to(quantiles.dtype)


def draw(
    seed: int,
    rows: Tensor,  # [B]
    counter: Tensor,  # [B]
    num_quantiles: int,
) -> Tensor:  # [B, Q]
    """Uniform numbers: particle q is word q % 4 of counter (q / 4, counter, row)."""
    block = torch.arange((num_quantiles + 3) // 4, device=rows.device)
    rows, counter = rows[:, None], counter[:, None]
    counters = torch.broadcast_tensors(block, counter, rows, rows >> 32)
    words = philox.philox4x32(torch.stack(counters, dim=-1), philox.seed_key(seed))
    return philox.uniform24(words).flatten(1)[:, :num_quantiles]


def padding(cu_seqlens: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Packed rows as a padded matrix: token index [n, T] and which entries are there [n, T]."""
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff()
    longest = int(lengths.max()) if len(lengths) else 0
    column = torch.arange(longest, device=cu_seqlens.device)
    present = column < lengths[:, None]
    return (starts[:, None] + column).clamp(max=max(total - 1, 0)), present


def find_steps(mask: Tensor, done: Tensor | None, present: Tensor, mask_mode: str) -> Steps:
    counts = mask != 0
    unmasked = counts if mask_mode != "none" else torch.ones_like(counts)
    skip = ~present | (~unmasked if mask_mode == "carry" else torch.zeros_like(counts))
    blank = ~unmasked if mask_mode == "zero" else torch.zeros_like(counts)
    stop = torch.zeros_like(counts) if done is None else done != 0
    # Steps are numbered from the row's first unmasked token, so that padding changes nothing.
    number = (~skip).long().cumsum(1) - 1
    padded = ((unmasked & present).long().cumsum(1) == 0) & ~skip

    return Steps(skip, blank, stop, number - padded.sum(1, keepdim=True))


def blanked(
    rewards: Tensor, quantiles: Tensor, steps: Steps, *others: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Rewards [B, T] and values [B, T, Q], 0 where blank, in the widest dtype given, at least
    float32."""
    dtype = torch.promote_types(rewards.dtype, torch.float32)
    for tensor in (quantiles, *others):
        if tensor is not None:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return (
        rewards.to(dtype).masked_fill(steps.blank, 0),
        quantiles.to(dtype).masked_fill(steps.blank.unsqueeze(-1), 0),
    )


def _start(values: Tensor, bootstrap: Tensor | None) -> Tensor:  # [B, Q]
    if bootstrap is None:
        return values.new_zeros((values.shape[0], values.shape[2]))
    return bootstrap.to(values.dtype)


def _per_row(lam: float | Tensor, dtype: torch.dtype) -> Tensor:  # [B, 1] or []
    lam = torch.as_tensor(lam, dtype=dtype)
    return lam.unsqueeze(-1) if lam.dim() else lam


def _stack(last_to_first: list[Tensor], values: Tensor) -> Tensor:  # [B, T, Q]
    return torch.stack(last_to_first[::-1], dim=1) if last_to_first else torch.zeros_like(values)
