"""The flow consistency loss: its definition by hand, where gradients go and where they do not."""

import math

import pytest
import torch
from tolerances import assert_near, assert_same_gradients

from dfpo_kernels import FlowField, flow_consistency_loss, reference

FIELDS = ("field", "shortcut")
# lead, Q, W of field, W of shortcut, K
SIZES = [((5,), 33, 40, 7, 3), ((2, 3), 70, 5, 300, 2), ((), 8, 4, 4, 4), ((3,), 1, 2, 1, 3)]
SIZES += [((4,), 16, 6, 3, 1), ((0,), 9, 4, 5, 2)]


def constant_field(velocity):
    zero = torch.zeros(1)
    return FlowField(zero, zero, torch.tensor(velocity), torch.ones(1), torch.ones(1))


def named(prefix, field):
    return {f"{prefix}.{name}": tensor for name, tensor in field._asdict().items()}


def loss_of(function, t, **options):
    field, shortcut = (
        FlowField(*(t[f"{prefix}.{name}"] for name in FlowField._fields))
        if f"{prefix}.bias" in t
        else None
        for prefix in FIELDS
    )
    return function(field, t["base"], shortcut=shortcut, **options)


def test_by_hand():
    # The flow moves every particle by 2, the shortcut by 0.5: (0.5 - 2)^2 = 2.25.
    base = torch.tensor([0.0, 1.0, 5.0])
    for function in (flow_consistency_loss, reference.flow_consistency_loss):
        loss = function(constant_field(2.0), base, shortcut=constant_field(0.5))
        assert abs(loss.item() - 2.25) < 1e-6
        # One Euler step of a field is its own shortcut.
        assert function(constant_field(2.0), base, steps=1).item() < 1e-12


def test_two_euler_steps_by_hand():
    # silu(x) = x in float32 for x > 20, so velocity(z, s) = 2 (50 + z / 2 + s / 2) - 100 = z + s.
    # Two Euler steps from z:  z + (z + 0) / 2 = 3z/2;  3z/2 + (3z/2 + 1/2) / 2 = 9z/4 + 1/4.
    # Displacement 5z/4 + 1/4 against z:  residual -(z + 1) / 4;  z = 1, 3:  (1/4 + 1) / 2 = 5/8.
    field = FlowField(
        bias=torch.tensor([50.0]),
        gain=torch.tensor([2.0]),
        offset=torch.tensor(-100.0),
        z_weight=torch.tensor([0.5]),
        time_weight=torch.tensor([0.5]),
    )
    for function in (flow_consistency_loss, reference.flow_consistency_loss):
        loss = function(field, torch.tensor([1.0, 3.0]), steps=2)
        assert abs(loss.item() - 5 / 8) < 1e-4


@pytest.mark.parametrize("with_shortcut", [True, False])
def test_gradient_stops_at_the_flow(with_shortcut):
    # The definition with the stop made explicit, differentiated by hand in float64.
    torch.manual_seed(1)

    def make(width):
        shapes = ((3, width), (3, width), (3,), (width,), (width,))
        return FlowField(
            *(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
        )

    field, shortcut = make(4), make(6)
    base = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    moving = shortcut if with_shortcut else field
    target = (reference.integrate_flow(field, base, steps=3) - base).detach()
    expected = (reference.flow_velocity(moving, base, 0.0) - target).square().mean(-1).sum()
    wanted = torch.autograd.grad(expected, (*moving, base), allow_unused=True)

    actual = reference.flow_consistency_loss(
        field, base, shortcut=shortcut if with_shortcut else None, steps=3
    )
    actual.sum().backward()
    for tensor, grad in zip((*moving, base), wanted, strict=True):
        assert_near(tensor.grad, torch.zeros_like(tensor) if grad is None else grad)
    if with_shortcut:
        assert all(tensor.grad is None for tensor in field)


# One Euler step is its own shortcut, a loss of rounding errors: only with a shortcut.
CASES = [(size, torch.float32, True) for size in SIZES]
CASES += [(size, torch.float32, False) for size in SIZES if size[-1] > 1]
CASES += [
    (SIZES[1], dtype, own) for dtype in (torch.bfloat16, torch.float16) for own in (True, False)
]


@pytest.mark.parametrize(("size", "dtype", "with_shortcut"), CASES, ids=str)
def test_values_and_gradients(variant, make_field, with_grad, size, with_shortcut, dtype):
    lead, num_quantiles, width, shortcut_width, steps = size
    tensors = named("field", make_field(lead, width, dtype))
    if with_shortcut:
        tensors |= named("shortcut", make_field(lead, shortcut_width, dtype))
    shared = steps == 2
    base = torch.randn(num_quantiles) if shared else torch.randn((*lead, num_quantiles))
    own, twins = with_grad(**tensors, base=base)
    method = ("euler", "midpoint", "heun", "rk4")[steps - 1]
    actual = loss_of(flow_consistency_loss, own, steps=steps, method=method)
    expected = loss_of(reference.flow_consistency_loss, twins, steps=steps, method=method)
    assert actual.dtype == torch.float32
    assert_near(actual, expected)
    upstream = torch.rand(lead)
    actual.backward(upstream)
    expected.backward(upstream.double())
    if with_shortcut:
        assert all(own[f"field.{name}"].grad is None for name in FlowField._fields)
    moving = "shortcut" if with_shortcut else "field"
    assert_same_gradients({k: t for k, t in own.items() if k.startswith((moving, "base"))}, twins)


def test_half_precision_base(make_field, with_grad):
    own, twins = with_grad(
        **named("field", make_field((4,), 9)), base=torch.randn(4, 20).to(torch.bfloat16)
    )
    actual = loss_of(flow_consistency_loss, own)
    expected = loss_of(reference.flow_consistency_loss, twins)
    assert_near(actual, expected)
    actual.sum().backward()
    expected.sum().backward()
    assert_same_gradients(own, twins)


def test_same_bits_for_any_number_of_threads(make_field):
    field, shortcut, base = make_field((90,), 40), make_field((90,), 20), torch.randn(90, 33)
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            own = FlowField(*(t.clone().requires_grad_() for t in shortcut))
            loss = flow_consistency_loss(field, base, shortcut=own)
            loss.sum().backward()
            results.append([loss.detach(), *(t.grad for t in own)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_gradcheck_of_the_reference(make_field):
    field, shortcut = make_field((2,), 3, torch.float64), make_field((2,), 2, torch.float64)
    inputs = [tensor.requires_grad_() for tensor in shortcut]
    base = torch.randn(2, 4, dtype=torch.float64)

    def run(*t):
        return reference.flow_consistency_loss(field, base, shortcut=FlowField(*t), steps=2)

    assert torch.autograd.gradcheck(run, inputs)


def test_opcheck(make_field):
    field, shortcut = make_field((5,), 4), make_field((5,), 3)
    inputs = [tensor.requires_grad_() for tensor in (*shortcut, torch.randn(1, 9))]
    torch.library.opcheck(
        torch.ops.dfpo.flow_consistency_loss.default, (*field, *inputs, 3, "heun", True)
    )


def test_compile_and_autocast(make_field, with_grad):
    own, twins = with_grad(**named("field", make_field((2, 3), 8)), base=torch.randn(9))

    def run(t):
        return loss_of(flow_consistency_loss, t, steps=2)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = torch.compile(run, fullgraph=True, backend="aot_eager")(own)
    expected = loss_of(reference.flow_consistency_loss, twins, steps=2)
    assert_near(actual, expected)
    actual.sum().backward()
    expected.sum().backward()
    assert_same_gradients(own, twins)


BAD = {
    "field": (TypeError, "field: got function, must be a FlowField", {"field": lambda z, s: z}),
    "shortcut": (TypeError, "shortcut: got int, must be a FlowField", {"shortcut": 3}),
    "shortcut rows": (
        ValueError,
        r"shortcut.offset: has shape \[\], must be \[2\]",
        {"shortcut": constant_field(1.0)},
    ),
    "base": (TypeError, "base: got NoneType, must be a torch.Tensor", {"base": None}),
    "base rows": (
        ValueError,
        r"base: has shape \[3, 5\], must be \[2, 5\]",
        {"base": torch.zeros(3, 5)},
    ),
    "base empty": (ValueError, "base: has Q = 0", {"base": torch.zeros(0)}),
    "steps": (ValueError, "steps: is -1, must be an integer", {"steps": -1}),
    "method": (ValueError, "method: is 'RK4', must be one of", {"method": "RK4"}),
    "device": (
        ValueError,
        "field.bias: is on device cpu, must be on meta like base",
        {"base": torch.zeros(5, device="meta")},
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_errors_name_the_argument(make_field, case):
    error, message, change = case
    arguments = {"field": make_field((2,), 3), "base": torch.zeros(2, 5), **change}
    with pytest.raises(error, match=message):
        flow_consistency_loss(**arguments)


def test_nan_stays_in_its_row(variant, make_field):
    field, base = make_field((3,), 4), torch.randn(3, 20)
    base[1, 7] = math.nan
    assert flow_consistency_loss(field, base).isnan().tolist() == [False, True, False]
