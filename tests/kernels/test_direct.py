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
    return torch.randn(shape).to(dtype)


def field(*rows, width=W, dtype=torch.float32):
    """Weights that rows share are float32, as direct calls take them."""
    bias, gain = (draw(*rows, width, dtype=dtype) for _ in range(2))
    return FlowField(bias, gain, draw(*rows, dtype=dtype), draw(width), draw(width))


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


CONSTANTS = ("taus", "lam", "target_lam", "done", "rows")
SCANS = (kernels.distributional_gae, kernels.lambda_mixture_targets)


def differentiable(op, args, kwargs):
    # The third argument of a scan is its mask.
    given = [*(args[:2] if op in SCANS else args)]
    given += [value for name, value in kwargs.items() if name not in CONSTANTS]
    parts = [part for arg in given for part in (arg if isinstance(arg, FlowField) else [arg])]
    return [part for part in parts if isinstance(part, torch.Tensor)]


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def with_gradients(name, every):
    """Outputs, and gradients by each ``every``-th input; those of the outputs are not dense."""
    op, args, kwargs = case(name)
    inputs = [tensor.requires_grad_() for tensor in differentiable(op, args, kwargs)[::every]]
    outputs = as_tuple(op(*args, **kwargs))
    total = sum(output.float().square().sum() for output in outputs) + outputs[0].sum()
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


class Ignoring(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class IgnoringFunctions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Labelled(torch.Tensor):
    pass


FIELD = field(B)


def velocity_of(z):
    return kernels.flow_velocity(FIELD, z, 0.3)


def in_mode(mode):
    def call(z):
        with mode():
            return velocity_of(z)

    return call


def with_tangent(z):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(velocity_of(forward_ad.make_dual(z, z))).primal


def traced(z):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        # The result of a call that the tracer had not seen would be a constant of the program.
        program = torch.jit.trace(velocity_of, torch.zeros_like(z), check_trace=False)
    return program(z)


# Ways to call the velocity in which something else is to see the call.
STATES = {
    "vmap": lambda z: torch.func.vmap(velocity_of)(z.unsqueeze(0)).squeeze(0),
    "functional gradient": lambda z: torch.func.vjp(velocity_of, z)[0],
    "forward mode": with_tangent,
    "dispatch mode": in_mode(Ignoring),
    "function mode": in_mode(IgnoringFunctions),
    "default device": in_mode(lambda: torch.device("cpu")),
    "tracer": traced,
    "profiler": in_mode(torch.profiler.profile),
    "subclass": lambda z: velocity_of(z.as_subclass(Labelled)),
}


@pytest.mark.parametrize("state", STATES)
def test_where_something_looks_into_the_calls_the_general_call_answers(state, answered):
    z = draw(B, Q)
    result = STATES[state](z)
    assert answered == [False]
    torch.testing.assert_close(torch.Tensor(result), velocity_of(z))


def integral_of(base, field=FIELD, **options):
    return kernels.integrate_flow(field, base, **options)


# Arguments that no kernel reads as they lie.
LAYOUTS = {
    "transposed": lambda: integral_of(draw(Q, B).t()),
    "every second": lambda: integral_of(draw(B, 2 * Q)[:, ::2]),
    "expanded": lambda: integral_of(draw(1, Q).expand(B, Q)),
    "negated view": lambda: integral_of(torch._neg_view(draw(B, Q))),
    "zero tensor": lambda: integral_of(torch._efficientzerotensor((B, Q))),
    "no rows": lambda: integral_of(draw(0, Q), field=field(0)),
    "float64": lambda: integral_of(draw(B, Q).double()),
    "meta": lambda: integral_of(
        draw(B, Q).to("meta"), field=FlowField(*(tensor.to("meta") for tensor in FIELD)),
    ),
    "weights in bfloat16": lambda: integral_of(
        draw(B, Q), field=FlowField(*(tensor.bfloat16() for tensor in FIELD)),
    ),
    "a number of NumPy": lambda: integral_of(draw(B, Q), end=np.float32(0.5)),
    "steps of NumPy": lambda: integral_of(draw(B, Q), steps=np.int64(2)),
    "callable": lambda: kernels.integrate_flow(lambda z, s: z * s, draw(B, Q)),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_does_not_lie_as_kernels_read_it_goes_the_general_way(name, answered):
    torch.manual_seed(1)
    result = LAYOUTS[name]()
    assert answered == [False]
    with general_calls():
        torch.manual_seed(1)
        expected = LAYOUTS[name]()
    assert result.device == expected.device and result.shape == expected.shape
    if result.device.type == "cpu":
        assert torch.equal(result, expected)


WRONG = {
    "field": lambda: kernels.flow_velocity((1, 2), draw(B, Q), 0.3),
    "z": lambda: kernels.flow_velocity(field(B), draw(B + 1, Q), 0.3),
    "z of integers": lambda: kernels.flow_velocity(field(B), torch.ones(B, Q, dtype=int), 0.3),
    "flow_time": lambda: kernels.flow_velocity(field(B), draw(B, Q), draw(B + 1)),
    "flow_time as bool": lambda: kernels.flow_velocity(field(B), draw(B, Q), True),
    "infinite time": lambda: kernels.flow_velocity(field(B), draw(B, Q), float("inf")),
    "gain": lambda: kernels.integrate_flow(field(B)._replace(gain=draw(B, W + 1)), draw(B, Q)),
    "z_weight": lambda: kernels.integrate_flow(field(B)._replace(z_weight=draw(W + 1)), draw(Q)),
    "base": lambda: kernels.integrate_flow(field(B), draw(B + 1, Q)),
    "steps": lambda: kernels.integrate_flow(field(B), draw(B, Q), steps=0),
    "steps as bool": lambda: kernels.integrate_flow(field(B), draw(B, Q), steps=True),
    "method": lambda: kernels.integrate_flow(field(B), draw(B, Q), method="leapfrog"),
    "start": lambda: kernels.integrate_flow(field(B), draw(B, Q), start=draw(B + 1)),
    "shortcut": lambda: kernels.flow_consistency_loss(field(B), draw(Q), shortcut=field(B + 1)),
    "targets": lambda: kernels.quantile_huber_loss(draw(B, Q), draw(B + 1, P)),
    "taus": lambda: kernels.quantile_huber_loss(draw(Q), draw(P), taus=torch.rand(P)),
    "kappa": lambda: kernels.quantile_huber_loss(draw(Q), draw(P), kappa=-1.0),
    "NaN": lambda: kernels.quantile_huber_loss(draw(Q), draw(P), kappa=float("nan")),
    "reduction": lambda: kernels.quantile_huber_loss(draw(Q), draw(P), quantile_reduction="max"),
    "gamma": lambda: kernels.distributional_gae(*tokens(), gamma=2.0, lam=0.5),
    "lam": lambda: kernels.distributional_gae(*tokens(), gamma=0.9, lam=draw(B + 1)),
    "mask": lambda: kernels.distributional_gae(draw(B, T), draw(B, T, Q), draw(B, T + 1), **SCAN),
    "mask_mode": lambda: kernels.distributional_gae(*tokens(), **SCAN, mask_mode="skip"),
    "bootstrap": lambda: kernels.distributional_gae(*tokens(), **SCAN, bootstrap=draw(B, Q + 1)),
    "done": lambda: kernels.distributional_gae(*tokens(), **SCAN, done=draw(B)),
    "bootstrap beside next_quantiles": lambda: kernels.distributional_gae(
        *tokens(), **SCAN, bootstrap=draw(B, Q), next_quantiles=draw(B, T, Q)
    ),
    "seed": lambda: kernels.lambda_mixture_targets(*tokens(), **SCAN, seed=-1),
    "rows": lambda: kernels.lambda_mixture_targets(
        *tokens(), **SCAN, seed=0, rows=torch.zeros(B, dtype=torch.int32)
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_left_to_the_general_call(name, answered):
    with pytest.raises((TypeError, ValueError), match=r"^\w+(\.\w+)?: "):
        WRONG[name]()
    assert answered == [False]


def test_autocast_changes_nothing(answered):
    with torch.autocast("cpu", torch.bfloat16):
        result = velocity_of(torch.ones(B, Q))
    assert torch.equal(result, velocity_of(torch.ones(B, Q))) and answered == [True, True]


def test_inference_mode_gives_inference_tensors(answered):
    with torch.inference_mode():
        assert velocity_of(torch.ones(B, Q)).is_inference() and answered == [True]


def test_an_input_changed_before_the_backward_pass_is_noticed():
    z = draw(B, Q).requires_grad_()
    twice = z * 2
    loss = velocity_of(twice).sum()
    twice.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_hooks_see_what_is_saved():
    packed = []

    def pack(tensor):
        packed.append(tensor)
        return tensor

    z = draw(B, Q).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        velocity_of(z)
    # The five of the field and z.
    assert len(packed) == 6 and any(tensor.data_ptr() == z.data_ptr() for tensor in packed)


@pytest.mark.parametrize("name", CASES)
def test_a_backward_pass_that_steps_aside(name):
    """Under a mode that was not there in the forward pass."""
    with torch.autograd.set_multithreading_enabled(False):
        _, expected = with_gradients(name, 1)
        op, args, kwargs = case(name)
        inputs = [tensor.requires_grad_() for tensor in differentiable(op, args, kwargs)]
        outputs = as_tuple(op(*args, **kwargs))
        total = sum(output.float().square().sum() for output in outputs) + outputs[0].sum()
        with Ignoring():
            gradients = torch.autograd.grad(total, inputs, allow_unused=True)
    same_bits(gradients, expected)


def test_gradients_of_one_output_of_two(answered):
    rewards, quantiles, _ = tokens()
    quantiles.requires_grad_()
    mask = torch.ones(B, T)
    advantages, targets = kernels.distributional_gae(rewards, quantiles, mask, gamma=1.0, lam=1.0)
    assert answered == [True]
    # Returns do not depend on the values: A = return - z, and the target is the return.
    (gradient,) = torch.autograd.grad(advantages.sum(), quantiles, retain_graph=True)
    assert torch.equal(gradient, -torch.ones(B, T, Q))
    (gradient,) = torch.autograd.grad(targets.sum(), quantiles)
    assert torch.equal(gradient, torch.zeros(B, T, Q))
