"""Direct calls: the same bits as the general call, and stepping aside wherever they must."""

from __future__ import annotations

import importlib
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import dfpo_kernels as kernels
from dfpo_kernels import FlowField

B, T, Q, P, W = 3, 4, 5, 6, 2
SCAN = {"gamma": 0.9, "lam": 0.7}
ROOMS = {
    kernels.flow_velocity: "integrate_flow.velocity",
    kernels.integrate_flow: "integrate_flow",
    kernels.flow_consistency_loss: "flow_consistency_loss",
    kernels.quantile_huber_loss: "quantile_huber_loss",
    kernels.distributional_gae: "distributional_gae",
    kernels.lambda_mixture_targets: "distributional_gae.mixture",
}


def room(op):
    return importlib.import_module(f"dfpo_kernels.{ROOMS[op]}")


@pytest.fixture
def answered(monkeypatch):
    """Whether each direct call that was asked has answered, in order."""
    seen = []

    def watch(module, name):
        call = getattr(module, name)

        def watched(*args):
            result = call(*args)
            seen.append(result is not None)
            return result

        monkeypatch.setattr(module, name, watched)

    for op in ROOMS:
        watch(room(op), "_direct_call")
    return seen


@contextmanager
def general_calls():
    with pytest.MonkeyPatch.context() as patch:
        for op in ROOMS:
            patch.setattr(room(op), "_direct_call", lambda *_: None)
        yield


def draw(*shape, dtype=torch.float32):
    return torch.randn(*shape).to(dtype)


def field(*rows, width=W, dtype=torch.float32):
    """Weights that rows share are float32, as direct calls take them."""
    rest = draw(*rows, width, dtype=dtype), draw(*rows, width, dtype=dtype), draw(*rows, dtype=dtype)
    return FlowField(*rest, draw(width), draw(width))


def tokens(dtype=torch.float32):
    mask = torch.ones(B, T)
    mask[1, 2] = 0
    return draw(B, T), draw(B, T, Q, dtype=dtype), mask


CASES = {
    "velocity": lambda: (kernels.flow_velocity, (field(B), draw(B, Q), 0.3), {}),
    "velocity, one row": lambda: (kernels.flow_velocity, (field(), draw(Q), draw()), {}),
    "velocity, time 1": lambda: (kernels.flow_velocity, (field(B), draw(B, Q), 1), {}),
    "velocity, a time per row": lambda: (
        kernels.flow_velocity, (field(B, T), draw(B, T, Q), draw(B, T)), {},
    ),
    "velocity, a time per particle": lambda: (
        kernels.flow_velocity, (field(B), draw(B, Q), draw(B, Q)), {},
    ),
    "velocity, one particle": lambda: (
        kernels.flow_velocity, (field(B), draw(B, 1), draw(B, 1)), {},
    ),
    "velocity, bfloat16": lambda: (
        kernels.flow_velocity,
        (field(B, dtype=torch.bfloat16), draw(B, Q, dtype=torch.float16), draw(dtype=torch.half)),
        {},
    ),
    "integral": lambda: (kernels.integrate_flow, (field(B), draw(B, Q)), {}),
    "integral, shared base": lambda: (
        kernels.integrate_flow, (field(B, T), draw(Q)), {"steps": 2, "end": draw()},
    ),
    "integral, trajectory": lambda: (
        kernels.integrate_flow, (field(B), draw(B, Q)),
        {"steps": 3, "method": "rk4", "start": draw(B), "trajectory": True},
    ),
    "integral, bfloat16": lambda: (
        kernels.integrate_flow,
        (field(B, dtype=torch.bfloat16), draw(Q, dtype=torch.bfloat16)),
        {"method": "heun", "start": draw(dtype=torch.bfloat16), "trajectory": True},
    ),
    "integral, one row": lambda: (kernels.integrate_flow, (field(), draw(Q)), {"start": 0.2}),
    "integral, a slice": lambda: (
        kernels.integrate_flow, (field(1), draw(B, Q)[1:2]), {"method": "midpoint"},
    ),
    "consistency": lambda: (kernels.flow_consistency_loss, (field(B), draw(B, Q)), {"steps": 2}),
    "consistency, shortcut": lambda: (
        kernels.flow_consistency_loss, (field(B, T), draw(Q)), {"shortcut": field(B, T, width=7)},
    ),
    "consistency, half": lambda: (
        kernels.flow_consistency_loss,
        (field(B), draw(B, Q, dtype=torch.half)), {"method": "rk4"},
    ),
    "huber": lambda: (kernels.quantile_huber_loss, (draw(B, T, Q), draw(B, T, P)), {}),
    "huber, levels": lambda: (
        kernels.quantile_huber_loss, (draw(Q), draw(P)),
        {"taus": torch.rand(Q), "kappa": 0, "quantile_reduction": "sum"},
    ),
    "huber, mixed": lambda: (
        kernels.quantile_huber_loss, (draw(B, Q, dtype=torch.bfloat16), draw(B, P)), {"kappa": 1.0},
    ),
    "gae": lambda: (kernels.distributional_gae, tokens(), SCAN),
    "gae, all arguments": lambda: (
        kernels.distributional_gae, tokens(),
        {
            "gamma": 1, "lam": torch.rand(B), "target_lam": 0.5, "bootstrap": draw(B, Q),
            "done": torch.rand(B, T) < 0.3, "mask_mode": "zero",
        },
    ),
    "gae, successors": lambda: (
        kernels.distributional_gae, tokens(torch.bfloat16),
        {**SCAN, "target_lam": torch.rand(B), "next_quantiles": draw(B, T, Q), "mask_mode": "none"},
    ),
    "mixture": lambda: (kernels.lambda_mixture_targets, tokens(), {**SCAN, "seed": 7}),
    "mixture, all arguments": lambda: (
        kernels.lambda_mixture_targets, tokens(torch.half),
        {
            "gamma": 0.5, "lam": torch.rand(B), "seed": 2**62, "bootstrap": draw(B, Q),
            "rows": torch.tensor([4, 0, 9]), "done": torch.zeros(B, T, dtype=torch.int32),
        },
    ),
}  # fmt: skip


def case(name):
    torch.manual_seed(0)
    return CASES[name]()


def differentiable(args, kwargs):
    flat = [part for arg in (*args, *kwargs.values()) for part in (arg if isinstance(arg, FlowField) else [arg])]
    constants = [kwargs.get("taus"), kwargs.get("lam"), kwargs.get("target_lam"), kwargs.get("done")]
    return [
        t for t in flat
        if isinstance(t, torch.Tensor) and t.is_floating_point() and all(t is not c for c in constants)
    ]  # fmt: skip


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def with_gradients(name, every=1):
    """Outputs, and their gradients by each ``every``-th input, for a cotangent that is not dense."""
    op, args, kwargs = case(name)
    # A mask that is a leaf is not differentiated.
    inputs = [tensor for tensor in differentiable(args, kwargs) if tensor is not args[2:3]][::every]
    for tensor in inputs:
        tensor.requires_grad_()
    outputs = as_tuple(op(*args, **kwargs))
    total = sum((output.float().square() * torch.arange(1, output.shape[-1] + 1) if output.dim() else output).sum() for output in outputs)
    return outputs, torch.autograd.grad(total, inputs, allow_unused=True)


def same_bits(actual, expected):
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        if other is None:
            assert one is None
            continue
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert one.requires_grad == other.requires_grad
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits(name, answered):
    op, args, kwargs = case(name)
    outputs = as_tuple(op(*args, **kwargs))
    assert answered == [True]
    with general_calls():
        same_bits(outputs, as_tuple(op(*args, **kwargs)))


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_the_same_gradients(name, every, answered):
    outputs, gradients = with_gradients(name, every)
    assert answered == [True]
    with general_calls():
        expected_outputs, expected = with_gradients(name, every)
    same_bits(outputs, expected_outputs)
    same_bits(gradients, expected)
