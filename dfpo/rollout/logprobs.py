"""Log-probabilities of chosen tokens: from logits, or from the hidden states under them, so that
the logits of a large vocabulary are never all there at once."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# float32 logits that may exist at once: 256 MiB, and on a CPU 32 MiB, which are still in its caches
# when they are read again.
LOGITS_AT_ONCE = 2**26
LOGITS_AT_ONCE_ON_CPU = 2**23
# Before this its gradients were those of a mean, whatever came back for each token.
LIGER = Version("0.8.5")


def from_logits(
    logits: Tensor,  # [..., V]
    tokens: Tensor,  # [...]
    temperature: float,
    *,
    entropy: bool = True,
) -> tuple[Tensor, Tensor | None]:  # [...], [...]
    """log softmax(logits / temperature) at ``tokens``, and the entropy of that distribution, in
    nats and without a gradient; None where it is not asked for. At least float32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logprobs = (logits / temperature).log_softmax(-1)
    chosen = logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    if not entropy:
        return chosen, None
    logprobs = logprobs.detach()
    # A token that cannot come, whose logit is -inf, adds nothing: 0 times a finite number.
    lowest = torch.finfo(logprobs.dtype).min

    return chosen, -(logprobs.exp() * logprobs.clamp_min(lowest)).sum(-1)


def from_hidden(
    hidden: Tensor,  # [N, D]
    tokens: Tensor,  # [N]
    head: nn.Module,
    temperature: float,
    *,
    entropy: bool = True,
) -> tuple[Tensor, Tensor | None]:  # [N], [N]
    """``from_logits`` of ``head(hidden)``, by liger-kernel where ``use_liger`` says so, else by as
    many rows at a time as ``logits_at_once`` allows. Backward computes their logits again."""
    if not entropy and use_liger(hidden.device, head):
        return _by_liger(hidden, tokens, head, temperature), None
    rows = max(1, logits_at_once(hidden.device) // head.weight.shape[0])
    if is_plain(head, hidden):
        return _InPlace.apply(hidden, head.weight, head.bias, tokens, temperature, rows, entropy)

    def part(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        return from_logits(head(hidden), tokens, temperature, entropy=entropy)

    parts = [
        checkpoint(part, *some, use_reentrant=False, preserve_rng_state=False)
        for some in zip(hidden.split(rows), tokens.split(rows), strict=True)
    ]
    chosen, entropies = zip(*parts, strict=True)

    return torch.cat(chosen), torch.cat(entropies) if entropy else None


_meta_stands_for = "meta"


@contextmanager
def meta_as(device: str) -> Iterator[None]:
    """Inside, tensors on the meta device go through in parts as large as ``device`` would get."""
    global _meta_stands_for
    kept, _meta_stands_for = _meta_stands_for, device
    try:
        yield
    finally:
        _meta_stands_for = kept


def logits_at_once(device: torch.device) -> int:
    kind = _meta_stands_for if device.type == "meta" else device.type
    return min(LOGITS_AT_ONCE, LOGITS_AT_ONCE_ON_CPU) if kind == "cpu" else LOGITS_AT_ONCE


def is_plain(head: nn.Module, hidden: Tensor) -> bool:
    """Whether the head is a product with its weights and no more: no adapter, hook, share of a
    weight, or product in another dtype."""
    return (
        type(head) is nn.Linear
        and "forward" not in vars(head)
        and type(head.weight) is nn.Parameter
        and not head._forward_hooks
        and not head._forward_pre_hooks
        and head.weight.dtype == hidden.dtype
        and hidden.dtype in (torch.float32, torch.float64)
        # Torch knows no autocast of the meta device, on which memory is foretold.
        and (hidden.is_meta or not torch.is_autocast_enabled(hidden.device.type))
    )


class _InPlace(torch.autograd.Function):
    """``from_hidden`` of a plain head. Logits, exponentials and gradients of logits stand one after
    the other in one buffer, where autograd's formulas fill a new tensor each, whose pages the
    system has to clear first.

    With x the logits over the temperature and p their softmax: the entropy is
    log sum exp x - sum p x, and d log p[token] / d x is 1 at the token less p.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # [N, D]
        weight: Tensor,  # [V, D]
        bias: Tensor | None,  # [V]
        tokens: Tensor,  # [N]
        temperature: float,
        rows: int,
        entropy: bool,
    ) -> tuple[Tensor, Tensor | None]:  # [N], [N]
        chosen, normalizer = hidden.new_empty(2, len(hidden))
        entropies = torch.empty_like(chosen) if entropy else None
        buffer = hidden.new_empty(min(rows, len(hidden)), len(weight))
        powers = torch.empty_like(buffer) if entropy else buffer
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = _logits(hidden[part], weight, bias, temperature, buffer)
            highest = logits.amax(-1, keepdim=True)
            chosen[part] = logits.gather(-1, tokens[part].unsqueeze(-1)).squeeze(-1)

            logits.sub_(highest)
            if entropy:
                # A token that cannot come, whose logit is -inf, adds nothing: 0 times a number.
                logits.clamp_min_(torch.finfo(logits.dtype).min)
            exp = torch.exp(logits, out=powers[: len(logits)])
            total = exp.sum(-1)
            if entropy:
                entropies[part] = total.log() - exp.mul_(logits).sum(-1) / total
            normalizer[part] = total.log() + highest.squeeze(-1)

        ctx.save_for_backward(hidden, weight, bias, tokens, normalizer)
        ctx.temperature, ctx.rows = temperature, rows
        if entropy:
            ctx.mark_non_differentiable(entropies)
        return chosen - normalizer, entropies

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, normalizer = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        to_hidden = torch.empty_like(hidden) if wanted[0] else None
        to_weight = torch.zeros_like(weight) if wanted[1] else None
        to_bias = torch.zeros_like(bias) if wanted[2] else None
        buffer = hidden.new_empty(min(ctx.rows, len(hidden)), len(weight))
        for start in range(0, len(hidden), ctx.rows):
            part = slice(start, start + ctx.rows)
            logits = _logits(hidden[part], weight, bias, ctx.temperature, buffer)
            given = (upstream[part] / ctx.temperature).unsqueeze(-1)
            gradient = logits.sub_(normalizer[part].unsqueeze(-1)).exp_().mul_(-given)
            gradient.scatter_add_(-1, tokens[part].unsqueeze(-1), given)

            if to_hidden is not None:
                torch.mm(gradient, weight, out=to_hidden[part])
            if to_weight is not None:
                to_weight.addmm_(gradient.t(), hidden[part])
            if to_bias is not None:
                to_bias += gradient.sum(0)

        return to_hidden, to_weight, to_bias, None, None, None, None


def _logits(
    hidden: Tensor,  # [n, D]
    weight: Tensor,  # [V, D]
    bias: Tensor | None,  # [V]
    temperature: float,
    buffer: Tensor,  # [>= n, V]
) -> Tensor:  # [n, V], in the buffer
    logits = torch.mm(hidden, weight.t(), out=buffer[: len(hidden)])
    if bias is not None:
        logits += bias
    if temperature != 1:
        logits /= temperature
    return logits


def use_liger(device: torch.device, head: nn.Module) -> bool:
    """Its kernel wants a GPU and a linear head, and tells no entropy."""
    return device.type == "cuda" and isinstance(head, nn.Linear) and has_liger()


@functools.cache
def has_liger() -> bool:
    try:
        return Version(version("liger-kernel")) >= LIGER
    except PackageNotFoundError:
        return False


def _by_liger(hidden: Tensor, tokens: Tensor, head: nn.Linear, temperature: float) -> Tensor:
    """By its fused linear cross-entropy, which makes the host wait once in each direction: it
    counts the tokens that are not to be ignored (ops/fused_linear_cross_entropy.py, 0.8.5)."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    dtype = getattr(head, "compute_dtype", torch.float32)
    half = dtype != torch.float32
    with torch.autocast(hidden.device.type, dtype if half else None, enabled=half):
        return -liger_fused_linear_cross_entropy(
            hidden / temperature,
            head.weight,
            tokens,
            bias=None if head.bias is None else head.bias / temperature,
            reduction="none",
            accum_dtype=torch.float32,
        )
