"""The integral of a value flow: against torchdiffeq, hand loops and its float64 definition."""

import math
import os
import subprocess
import sys

import pytest
import torch
import torchdiffeq
from tolerances import assert_near, assert_same_gradients

from dfpo_kernels import FlowField, integrate_flow, reference

METHODS = ("euler", "midpoint", "heun", "rk4")
# field dtype, base dtype
DTYPES = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "mixed": (torch.bfloat16, torch.float32),
}
# lead, Q, W, K
SIZES = [((5,), 33, 40, 3), ((2, 3), 130, 7, 2), ((), 17, 5, 4), ((4,), 1, 1, 1), ((0,), 9, 4, 2)]


def velocity_by_formula(field, z, s):
    """The equation of FlowField, written out; s is one time for all."""
    x = field.bias.unsqueeze(-2) + z.unsqueeze(-1) * field.z_weight + s * field.time_weight
    return (x / (1 + torch.exp(-x)) * field.gain.unsqueeze(-2)).sum(-1) + field.offset.unsqueeze(-1)


def integrate(function, t, **options):
    """Calls integrate_flow or its reference with the tensors of a test by name."""
    times = {name: t[name] for name in ("start", "end") if name in t}
    field = FlowField(*(t[name] for name in FlowField._fields))
    return function(field, t["base"], **times, **options)


def linear_field(time_weight=0.0):
    # silu(x) = x in float32 for x > 20: velocity(z, s) = 2 (50 + z/2 + s t/2) - 100 = z + s t
    return FlowField(
        bias=torch.tensor([50.0]),
        gain=torch.tensor([2.0]),
        offset=torch.tensor(-100.0),
        z_weight=torch.tensor([0.5]),
        time_weight=torch.tensor([0.5 * time_weight]),
    )


@pytest.mark.parametrize(
    ("method", "steps", "expected"),
    [
        ("euler", 1, 2.0),
        ("euler", 2, 2.25),  # (1 + 1/2)^2
        ("midpoint", 1, 2.5),  # 1 + 1 + 1/2
        ("heun", 1, 2.5),  # 1 + (1 + 2) / 2
        ("rk4", 1, 65 / 24),  # 1 + 1 + 1/2 + 1/6 + 1/24
    ],
)
def test_exponential_growth_by_hand(method, steps, expected):
    # dz/ds = z, z(0) = 1, so that one step of order p is the Taylor sum of e to degree p.
    for function in (integrate_flow, reference.integrate_flow):
        end = function(linear_field(), torch.tensor([1.0]), steps=steps, method=method)
        assert abs(end.item() - expected) < 2e-5


def test_time_and_trajectory_by_hand():
    # dz/ds = z + s from s = 1 to 2 in two steps of 1/2:
    # z = 1;  1 + (1 + 1) / 2 = 2;  2 + (2 + 1.5) / 2 = 3.75
    for function in (integrate_flow, reference.integrate_flow):
        states = function(
            linear_field(1.0), torch.tensor([1.0]), steps=2, start=1.0, end=2.0, trajectory=True
        )
        expected = torch.tensor([[1.0], [2.0], [3.75]])
        torch.testing.assert_close(states, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_torchdiffeq_agrees(variant, make_field, method):
    start, end, steps = 0.125, 0.875, 6
    field, base = make_field((2, 3), 10, torch.float64), torch.randn(2, 3, 35).double()
    inputs = [t.requires_grad_() for t in (*field, base)]
    grid = torch.linspace(start, end, steps + 1, dtype=torch.float64)
    states = torchdiffeq.odeint(
        lambda s, z: velocity_by_formula(field, z, s), base, grid, method=method
    ).movedim(0, -2)
    upstream = torch.randn_like(states)
    expected = torch.autograd.grad(states, inputs, upstream)

    options = {"steps": steps, "method": method, "start": start, "end": end, "trajectory": True}
    states_of = reference.integrate_flow(field, base, **options)
    assert_near(states_of, states)
    for actual, grad in zip(
        torch.autograd.grad(states_of, inputs, upstream), expected, strict=True
    ):
        assert_near(actual, grad)

    inputs = [t.detach().float().requires_grad_() for t in inputs]
    own = integrate_flow(FlowField(*inputs[:5]), inputs[5], **options)
    assert_near(own, states)
    grads = torch.autograd.grad(own, inputs, upstream.float())
    for actual, grad in zip(grads, expected, strict=True):
        assert_near(actual, grad)


def test_heun_is_the_trapezoid_loop(make_field):
    field, z = make_field((4,), 6, torch.float64), torch.randn(4, 5).double()
    actual = reference.integrate_flow(field, z, steps=3, method="heun")
    h = 1 / 3
    for k in range(3):
        first = velocity_by_formula(field, z, k * h)
        second = velocity_by_formula(field, z + h * first, (k + 1) * h)
        z = z + h * (first + second) / 2
    assert_near(actual, z)


CASES = [(size, method, "float32") for size in SIZES for method in METHODS]
CASES += [(SIZES[0], method, name) for method in METHODS for name in DTYPES if name != "float32"]


@pytest.mark.parametrize(("size", "method", "dtype"), CASES, ids=str)
def test_values_and_gradients(variant, make_field, with_grad, size, method, dtype):
    dtypes = DTYPES[dtype]
    lead, num_quantiles, width, steps = size
    own, twins = with_grad(
        **make_field(lead, width, dtypes[0])._asdict(),
        base=torch.randn((*lead, num_quantiles)).to(dtypes[1]),
        start=(torch.rand(lead) * 0.4).to(dtypes[0]),
        end=torch.rand(lead) + 0.5,
    )
    # With and without trajectory on alternate methods.
    options = {"steps": steps, "method": method, "trajectory": method in ("midpoint", "rk4")}
    actual = integrate(integrate_flow, own, **options)
    expected = integrate(reference.integrate_flow, twins, **options)
    assert actual.dtype == dtypes[1]
    assert_near(actual, expected)
    upstream = torch.randn(actual.shape).to(actual.dtype)
    actual.backward(upstream)
    expected.backward(upstream.double())
    assert_same_gradients(own, twins)


@pytest.mark.parametrize("trajectory", [False, True])
@pytest.mark.parametrize("rows", [5, 1, 0])
def test_shared_base_and_scalar_times(variant, make_field, with_grad, rows, trajectory):
    own, twins = with_grad(
        **make_field((rows,), 12)._asdict(),
        base=torch.randn(20),
        start=torch.tensor(0.25),
        end=torch.tensor(0.75),
    )
    options = {"steps": 3, "method": "heun", "trajectory": trajectory}
    actual = integrate(integrate_flow, own, **options)
    expected = integrate(reference.integrate_flow, twins, **options)
    assert_near(actual, expected)
    upstream = torch.randn(actual.shape)
    actual.backward(upstream)
    expected.backward(upstream.double())
    assert_same_gradients(own, twins)


@pytest.mark.parametrize("wanted", [*FlowField._fields, "base", "end"])
def test_one_gradient_alone(make_field, wanted):
    tensors = {**make_field((3,), 9)._asdict(), "base": torch.randn(3, 20), "end": torch.rand(3)}
    tensors["base"].add_(1)
    twins = {name: t.double() for name, t in tensors.items()}
    for t in (tensors, twins):
        t[wanted] = t[wanted].requires_grad_()
    integrate(integrate_flow, tensors, method="rk4").sum().backward()
    integrate(reference.integrate_flow, twins, method="rk4").sum().backward()
    assert_same_gradients({wanted: tensors[wanted]}, twins)


def test_many_rows_with_large_width(variant, make_field, with_grad):
    # More rows than chunks, and a width whose coefficients leave the first cache level.
    own, twins = with_grad(**make_field((300,), 3000)._asdict(), base=torch.randn(300, 2))
    actual = integrate(integrate_flow, own, steps=2)
    expected = integrate(reference.integrate_flow, twins, steps=2)
    assert_near(actual, expected)
    actual.square().mean().backward()
    expected.square().mean().backward()
    assert_same_gradients(own, twins)


def test_same_bits_for_any_number_of_threads(make_field):
    tensors = {**make_field((70,), 40)._asdict(), "base": torch.randn(33)}
    tensors["end"] = torch.tensor(0.75)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            own = {name: t.clone().requires_grad_() for name, t in tensors.items()}
            out = integrate(integrate_flow, own, steps=6, method="midpoint")
            out.backward(torch.linspace(-1, 1, 33).expand(70, 33))
            results.append([out.detach(), *(t.grad for t in own.values())])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_non_contiguous_inputs_and_upstream(variant, make_field):
    field, base = make_field((6,), 10), torch.randn(21, 6)
    strided = field._replace(
        bias=field.bias.T.contiguous().T, offset=field.offset.repeat_interleave(3)[::3]
    )
    strided = FlowField(*(t.detach().requires_grad_() for t in strided))
    plain = FlowField(*(t.contiguous().requires_grad_() for t in field))
    start = torch.rand(6, 2)
    out = integrate_flow(strided, base.T, start=start[:, 0])
    same = integrate_flow(plain, base.T.contiguous(), start=start[:, 0].contiguous())
    assert torch.equal(out, same)
    upstream = torch.randn(21, 6).T
    out.backward(upstream)
    same.backward(upstream.contiguous())
    for left, right in zip(strided, plain, strict=True):
        assert torch.equal(left.grad, right.grad)


def test_summed_upstream(make_field, with_grad):
    # The gradient of a sum arrives with stride 0.
    own, twins = with_grad(**make_field((4,), 5)._asdict(), base=torch.randn(4, 18))
    integrate(integrate_flow, own, trajectory=True).sum().backward()
    integrate(reference.integrate_flow, twins, trajectory=True).sum().backward()
    assert_same_gradients(own, twins)


@pytest.mark.parametrize("method", METHODS)
def test_callable_field(make_field, method):
    field, base = make_field((2, 3), 6), torch.randn(2, 3, 5, requires_grad=True)
    start = torch.rand(2, 3)
    seen = []

    def velocity(z, s):
        seen.append((z.shape, s.shape))
        return reference.flow_velocity(field, z, s)

    options = {"steps": 3, "method": method, "start": start}
    actual = integrate_flow(velocity, base, **options)
    expected = integrate_flow(field, base, **options)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert set(seen) == {((2, 3, 5), (2, 3, 1))}
    left, right = (torch.autograd.grad(t.sum(), base)[0] for t in (actual, expected))
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-5)
    seen.clear()
    half = integrate_flow(velocity, base.bfloat16(), steps=1)
    assert half.dtype == torch.bfloat16 and seen[0] == ((2, 3, 5), ())


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck_of_the_reference(make_field, method):
    field, base = make_field((2,), 3, torch.float64), torch.randn(2, 2, dtype=torch.float64)
    start, end = torch.rand(2).double() * 0.3, torch.tensor(0.9).double()
    inputs = [tensor.requires_grad_() for tensor in (*field, base, start, end)]

    def run(*t):
        return reference.integrate_flow(
            FlowField(*t[:5]), t[5], start=t[6], end=t[7], steps=2, method=method
        )

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("trajectory", [False, True])
def test_opcheck(make_field, trajectory):
    field, base = make_field((5,), 4), torch.randn(1, 9)
    inputs = [t.requires_grad_() for t in (*field, base, torch.zeros(5, 1), torch.ones(1, 1))]
    op, backward = torch.ops.dfpo.integrate_flow, torch.ops.dfpo.integrate_flow_backward
    torch.library.opcheck(op.default, (*inputs, 3, "heun", trajectory, True))
    *detached, base, start, end = (t.detach() for t in inputs)
    path, out = torch.randn(5, 3, 9), torch.randn(5, *((4,) if trajectory else ()), 9)
    torch.library.opcheck(
        backward.default,
        (out, *detached, path, start, end, True, 3, "heun", trajectory, True),
    )


def test_compile_and_autocast(make_field, with_grad):
    own, twins = with_grad(**make_field((2, 3), 8)._asdict(), base=torch.randn(9))

    def run(t):
        return integrate(integrate_flow, t, method="rk4", steps=2)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = torch.compile(run, fullgraph=True)(own)
    assert actual.dtype == torch.float32
    expected = integrate(reference.integrate_flow, twins, method="rk4", steps=2)
    assert_near(actual, expected)
    actual.square().sum().backward()
    expected.square().sum().backward()
    assert_same_gradients(own, twins)


MEMORY = """
import torch
from dfpo_kernels import FlowField, integrate_flow

def resident(key):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) * 1024

R, Q, W, K = 32768, 64, 64, 8
tensors = [torch.randn(R, W), torch.randn(R, W), torch.randn(R), torch.randn(W), torch.randn(W)]
tensors = [t.requires_grad_() for t in (*tensors, torch.randn(R, Q))]

def run(rows):
    field = FlowField(*(t[:rows] for t in tensors[:3]), *tensors[3:5])
    return torch.autograd.grad(integrate_flow(field, tensors[5][:rows], steps=K).sum(), tensors)

run(2)
# Fill up what the start of the process once held, so that the peak counts from here.
ballast = torch.ones(max(resident("VmHWM") - resident("VmRSS"), 0) // 4 + 1)
before = resident("VmHWM")
field = FlowField(*tensors[:5])
out = integrate_flow(field, tensors[5], steps=K).sum()
grads = torch.autograd.grad(out, tensors)
gradients = sum(g.numel() for g in grads) * 4
print((resident("VmHWM") - before - gradients) / (R * Q * 4))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer's memory would count"
)
def test_memory_of_forward_and_backward():
    child = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, timeout=120
    )
    tensors = float(child.stdout)
    steps = 8
    # The path alone is K tensors of [R, Q]: less than that would mean nothing was measured.
    assert steps - 1 < tensors <= steps + 4


BAD = {
    "steps": (ValueError, "steps: is 0, must be an integer in", {"steps": 0}),
    "steps type": (TypeError, "steps: got float, must be an integer", {"steps": 2.0}),
    "method": (ValueError, "method: is 'rk5', must be one of euler, midpoint", {"method": "rk5"}),
    "no method": (ValueError, r"method: is \[\], must be one of euler", {"method": []}),
    "field": (TypeError, "field: got str, must be a FlowField or a callable", {"field": "euler"}),
    "base type": (TypeError, "base: got list, must be a torch.Tensor", {"base": [1.0]}),
    "base dtype": (TypeError, "base: has dtype torch.int64", {"base": torch.zeros(5).long()}),
    "base rank": (ValueError, r"base: has shape \[\], must be", {"base": torch.tensor(1.0)}),
    "base empty": (ValueError, "base: has Q = 0", {"base": torch.zeros(2, 0)}),
    "base rows": (
        ValueError,
        r"base: has shape \[3, 5\], must be \[2, 5\]",
        {"base": torch.zeros(3, 5)},
    ),
    "base device": (
        ValueError,
        "field.bias: is on device cpu, must be on meta like base",
        {"base": torch.zeros(2, 5, device="meta")},
    ),
    "start": (ValueError, "start: is inf, must be a finite number", {"start": math.inf}),
    "end rows": (ValueError, r"end: has shape \[3\], must be \[2\]", {"end": torch.zeros(3)}),
    "end type": (TypeError, "end: got str, must be a number", {"end": "1"}),
    "slope shape": (
        ValueError,
        r"field\(z, s\): has shape \[2\], must be \[2, 5\]",
        {"field": lambda z, s: z.sum(-1)},
    ),
    "slope type": (
        TypeError,
        r"field\(z, s\): got tuple, must be a torch.Tensor",
        {"field": lambda z, s: (z, s)},
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_errors_name_the_argument(make_field, case):
    error, message, change = case
    arguments = {"field": make_field((2,), 3), "base": torch.zeros(2, 5), **change}
    with pytest.raises(error, match=message):
        integrate_flow(**arguments)
