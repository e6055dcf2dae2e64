"""Outputs that dfpo_kernels allocates arrive full of NaN, so a kernel that leaves one unwritten
fails its test."""

import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def poisoned_allocations(monkeypatch):
    def poison(allocate):
        def allocate_nan(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            from_kernels = sys._getframe(1).f_globals.get("__name__", "").startswith("dfpo_kernels")
            if from_kernels and tensor.is_floating_point() and not torch.compiler.is_compiling():
                tensor.fill_(float("nan"))
            return tensor

        return allocate_nan

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
