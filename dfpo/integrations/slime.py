"""slime: advantages for ``--custom-advantage-function-path dfpo.integrations.slime.advantages``.

slime keeps one tensor per answer, so the lists go through the packed path of
``distributional_gae``. Written against slime 624b824a8 (21 Aug 2026); imports neither slime nor
Megatron, but for their context-parallel functions where those are in use.
"""

from __future__ import annotations

import functools
import logging
from argparse import Namespace
from typing import Any

import torch
from torch import Tensor

from dfpo_kernels import distributional_gae

__all__ = ["advantages"]

KEYS = ("kl", "loss_masks", "response_lengths", "rewards", "total_lengths", "values")


@torch.no_grad()
def advantages(args: Namespace, rollout_data: dict[str, Any]) -> None:
    """Sets ``rollout_data["advantages"]``, a list of [len], and ``["returns"]``, shaped as values.

    The reward of an answer lies on its last token that counts, and -kl_coef * kl on all of them.
    With the default ``dfpo_mask_mode`` these are the numbers of slime's estimator "ppo".

    Args:
        args: slime's; ``gamma``, ``lambd``, ``kl_coef``, and of ours, from the file of slime's
            ``--custom-config-path``, ``dfpo_mask_mode``: "none" (default; as slime, every token is
            a step), "carry" (tool tokens are no steps) or "zero".
        rollout_data: lists over answers: ``values`` of [len], or [len, Q] where the critic
            predicts quantiles; ``kl``, ``loss_masks`` of [len]; ``rewards``,
            ``response_lengths``, ``total_lengths`` of numbers.

    Raises:
        KeyError, ValueError: naming what is missing or wrong.
    """
    missing = [key for key in KEYS if rollout_data.get(key) is None]
    if missing:
        raise KeyError(f"rollout_data: lacks {', '.join(missing)}; PPO needs a critic's values")
    mode = getattr(args, "dfpo_mask_mode", "none")
    _say_once(mode)
    lengths = rollout_data["response_lengths"]
    if not lengths:
        rollout_data["advantages"], rollout_data["returns"] = [], []
        return
    values = torch.cat(_whole(args, rollout_data, "values"))
    mask = torch.cat(rollout_data["loss_masks"]).to(values.device)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(values.device)

    if not len(values) == len(mask) == int(cu_seqlens[-1]):
        raise ValueError(
            f"values: have {len(values)} tokens and loss_masks {len(mask)}, must have the sum of "
            f"response_lengths, {int(cu_seqlens[-1])}"
        )

    rewards = -args.kl_coef * torch.cat(_whole(args, rollout_data, "kl")).to(values.device)
    scores = torch.as_tensor(rollout_data["rewards"], dtype=rewards.dtype, device=values.device)
    last, present = _last_tokens(mask if mode != "none" else torch.ones_like(mask), cu_seqlens)
    rewards[last[present]] += scores[present]
    traced, returns = distributional_gae(
        rewards, values.view(len(mask), -1), mask, gamma=args.gamma, lam=args.lambd,
        mask_mode=mode, cu_seqlens=cu_seqlens,
    )  # fmt: skip
    rollout_data["advantages"] = _parts(args, rollout_data, traced.mean(-1))
    rollout_data["returns"] = _parts(args, rollout_data, returns.view(values.shape))


@functools.cache
def _say_once(mode: str) -> None:
    logging.getLogger(__name__).info("advantages by dfpo, mask_mode %s", mode)


def _last_tokens(
    mask: Tensor,  # [N]
    cu_seqlens: Tensor,  # [n + 1]
) -> tuple[Tensor, Tensor]:  # [n], [n]
    """Index of the last token that counts in each sequence, and whether there is one."""
    counted = torch.nn.functional.pad((mask != 0).cumsum(0), (1, 0))
    before, until = counted[cu_seqlens[:-1]], counted[cu_seqlens[1:]]
    # The token at which the running count reaches the sequence's last.
    return torch.searchsorted(counted, until) - 1, until > before


def _whole(args: Namespace, rollout_data: dict[str, Any], key: str) -> list[Tensor]:
    """Tensors of whole answers, gathered where context parallelism has cut them."""
    if getattr(args, "context_parallel_size", 1) == 1:
        return rollout_data[key]
    from slime.backends.megatron_utils.cp_utils import all_gather_with_cp

    lengths = zip(rollout_data["total_lengths"], rollout_data["response_lengths"], strict=True)
    return [
        all_gather_with_cp(part, total, response)
        for part, (total, response) in zip(rollout_data[key], lengths, strict=True)
    ]


def _parts(args: Namespace, rollout_data: dict[str, Any], packed: Tensor) -> list[Tensor]:
    """A packed tensor as slime's list, cut as context parallelism has it."""
    whole = packed.split(rollout_data["response_lengths"])
    if getattr(args, "context_parallel_size", 1) == 1:
        return list(whole)
    from slime.backends.megatron_utils.cp_utils import slice_log_prob_with_cp

    lengths = zip(rollout_data["total_lengths"], rollout_data["response_lengths"], strict=True)
    return [
        slice_log_prob_with_cp(row, total, response)
        for row, (total, response) in zip(whole, lengths, strict=True)
    ]
