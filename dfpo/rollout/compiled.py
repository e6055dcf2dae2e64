"""Layers that torch.compile makes kernels of, for passes over whole answers.

Each layer is compiled by itself: they are alike, so the first one's kernels serve all, and what
stands around them (gradient checkpoints, shards, adapters' views) need not be traced. Sampling
calls layers with a cache that grows by a token, where compiled code would be guarded anew at each
length: there they run as they were written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn


def compile_layers(model: nn.Module, backend: str = "inductor") -> int:
    """Compiles the layers of the language model in ``model``, for any lengths; returns how many.
    Weights and their names stay."""
    layers = list(layers_of(model))
    for layer in layers:
        layer.compile(backend=backend, dynamic=True)
    model.compiles = True
    return len(layers)


def layers_of(model: nn.Module) -> Iterator[nn.Module]:
    """The blocks that transformers says are not to be split: attention and what follows it."""
    trunk = getattr(model, "trunk", model)
    blocks = getattr(trunk, "_no_split_modules", None) or ()
    return (module for module in trunk.modules() if type(module).__name__ in blocks)


def as_written(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, nothing of ``model`` runs compiled."""
    if not getattr(model, "compiles", False):
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
