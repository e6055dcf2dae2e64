"""How many bytes a computation would hold at once, without holding them: it runs on the meta
device, where a tensor is a shape, and each storage is counted from its making to its end.

What is counted is what autograd and the operators themselves allocate, so a change of a model or of
a loss needs no formula here. What an operator takes within itself and gives back is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# From this size on a block of memory is the system's again as soon as it is free (glibc's
# M_MMAP_THRESHOLD_MAX); smaller ones stay with the process, for other small ones.
LARGE = 32 * 2**20


@dataclass(frozen=True)
class Bytes:
    """The most that is held at once, and the most of small and of large blocks, each by itself."""

    together: int = 0
    small: int = 0
    large: int = 0

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @staticmethod
    def of(*sizes: int) -> Bytes:
        """Blocks that are there together."""
        large = sum(size for size in sizes if size >= LARGE)
        return Bytes(sum(sizes), sum(sizes) - large, large)

    @staticmethod
    def most(*several: Bytes) -> Bytes:
        """Of what is there in turn."""
        return Bytes(*map(max, zip(*map(astuple, several), strict=True)))


class Meter(TorchDispatchMode):
    """Counts bytes of storages made inside that are alive: now, and at most."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """Storages of the ``known`` tensors are there already, and not counted."""
        super().__init__()
        self.now = self.most = Bytes()
        self._alive: dict[int, Any] = {}
        for tensor in known:
            storage = tensor.untyped_storage()
            self._alive[storage._cdata] = storage

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:  # a view
            return

        def end(_: Any) -> None:
            self._alive.pop(key, None)
            self.now += Bytes(*(-part for part in astuple(Bytes.of(size))))

        self._alive[key] = weakref.ref(storage, end)
        self.now += Bytes.of(size)
        self.most = Bytes.most(self.most, self.now)


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention inside never holds a score for each pair of tokens, as kernels of CPU and GPU do
    it; on the meta device torch would take the formula that does."""
    own = F.scaled_dot_product_attention
    # Not by a mode: those are off where backward computes a layer again.
    F.scaled_dot_product_attention = _attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own


def _attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
) -> Tensor:  # [B, H, L, D]
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # What the kernels add to scores is a mask of numbers.
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    if options.get("enable_gqa"):
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, attn_mask=attn_mask, scale=options.get("scale"))[0]


def most_bytes(compute: Callable[[], Any], known: Iterable[Tensor] = ()) -> Bytes:
    """The most bytes that ``compute`` would hold at once, beside the ``known`` tensors; what it
    returns is still held then."""
    with fused_attention(), Meter(known) as meter:
        kept = compute()
    del kept
    return meter.most
