"""Log-probabilities of chosen tokens: from logits, or from the hidden states under them, so that
the logits of a large vocabulary are never all there at once."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version

import torch
from packaging.version import Version
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# float32 logits that may exist at once, 256 MiB; log_softmax and its gradient take as much again.
LOGITS_AT_ONCE = 2**26
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
    many rows at a time as LOGITS_AT_ONCE allows. Backward computes their logits again."""
    if not entropy and use_liger(hidden, head):
        return _by_liger(hidden, tokens, head, temperature), None

    def part(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        return from_logits(head(hidden), tokens, temperature, entropy=entropy)

    rows = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    parts = [
        checkpoint(part, *some, use_reentrant=False, preserve_rng_state=False)
        for some in zip(hidden.split(rows), tokens.split(rows), strict=True)
    ]
    chosen, entropies = zip(*parts, strict=True)

    return torch.cat(chosen), torch.cat(entropies) if entropy else None


def use_liger(hidden: Tensor, head: nn.Module) -> bool:
    """Its kernel wants a GPU and a linear head."""
    return hidden.is_cuda and isinstance(head, nn.Linear) and has_liger()


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
