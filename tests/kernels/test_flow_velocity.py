"""The velocity field against its float64 definition: values, every gradient, extremes, errors."""

import math

import pytest
import torch
from tolerances import VALUE, VELOCITY, assert_near, assert_same_gradients

from dfpo_kernels import FlowField, flow_velocity, reference

DTYPES = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "mixed": (torch.bfloat16, torch.float32),
}
# lead, Q, W
SIZES = [((5,), 33, 40), ((2, 3), 64, 7), ((), 17, 5), ((4,), 1, 1), ((0,), 9, 4), ((3,), 80, 600)]
TIMES = ["number", "scalar", "per_row", "per_quantile"]


def velocity_by_formula(field, z, s):
    """The equation of FlowField, written out; s broadcasts against z."""
    x = field.bias.unsqueeze(-2) + z.unsqueeze(-1) * field.z_weight
    x = x + (s * torch.ones_like(z)).unsqueeze(-1) * field.time_weight
    return (x / (1 + torch.exp(-x)) * field.gain.unsqueeze(-2)).sum(-1) + field.offset.unsqueeze(-1)


def make_time(kind, lead, num_quantiles):
    if kind == "number":
        return 0.625
    shape = {"scalar": (), "per_row": lead, "per_quantile": (*lead, num_quantiles)}[kind]
    return torch.rand(shape)


def test_by_hand():
    # W = 2, z = 2, s = 0.5:  x = (0 + 1*2 - 4*0.5, -1 + 2*2 + 0*0.5) = (0, 3)
    # silu(0) = 0, silu(3) = 3 / (1 + e^-3) = 2.857722
    # velocity = 0.25 + 5 * 0 - 2 * 2.857722 = -5.465445
    field = FlowField(
        bias=torch.tensor([0.0, -1.0]),
        gain=torch.tensor([5.0, -2.0]),
        offset=torch.tensor(0.25),
        z_weight=torch.tensor([1.0, 2.0]),
        time_weight=torch.tensor([-4.0, 0.0]),
    )
    expected = 0.25 - 2 * 3 / (1 + math.exp(-3))
    assert abs(flow_velocity(field, torch.tensor([2.0]), 0.5).item() - expected) < 1e-6
    assert abs(reference.flow_velocity(field, torch.tensor([2.0]), 0.5).item() - expected) < 1e-6


@pytest.mark.parametrize("kind", TIMES)
def test_reference_is_the_formula(make_field, kind):
    field, z = make_field((2, 3), 7, torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    s = make_time(kind, (2, 3), 5)
    column = s.double().unsqueeze(-1) if kind == "per_row" else s
    expected = velocity_by_formula(field, z, column)
    assert_near(reference.flow_velocity(field, z, s), expected)


CASES = [(size, kind, "float32") for size in SIZES for kind in TIMES]
CASES += [(SIZES[0], kind, name) for kind in TIMES for name in DTYPES if name != "float32"]


@pytest.mark.parametrize(("size", "kind", "dtype"), CASES, ids=str)
def test_values_and_gradients(variant, make_field, with_grad, size, kind, dtype):
    dtypes = DTYPES[dtype]
    lead, num_quantiles, width = size
    tensors = make_field(lead, width, dtypes[0])._asdict()
    tensors["z"] = torch.randn((*lead, num_quantiles)).to(dtypes[1])
    s = make_time(kind, lead, num_quantiles)
    if kind != "number":
        tensors["flow_time"] = s.to(dtypes[0])
    own, twins = with_grad(**tensors)

    def run(function, t):
        return function(
            FlowField(*(t[name] for name in FlowField._fields)), t["z"], t.get("flow_time", s)
        )

    actual, expected = run(flow_velocity, own), run(reference.flow_velocity, twins)
    assert actual.dtype == dtypes[1]
    assert_near(actual, expected)
    upstream = torch.randn(actual.shape).to(actual.dtype)
    actual.backward(upstream)
    expected.backward(upstream.double())
    assert_same_gradients(own, twins)


def magnitudes(shape, low, high):
    """Log-uniform over decades low to high with random signs; float32, so subnormals are kept."""
    decades = low + (high - low) * torch.rand(shape, dtype=torch.float64)
    return (10**decades * (torch.randint(2, shape) * 2 - 1)).float()


@pytest.mark.parametrize("scale", ["everyday", "extreme"])
def test_accuracy_on_a_million_cases(variant, scale):
    rows, num_quantiles, width = 16000, 64, 3
    if scale == "everyday":
        field = FlowField(
            bias=torch.randn(rows, width) * 4,
            gain=torch.randn(rows, width),
            offset=torch.randn(rows),
            z_weight=torch.randn(width) * 4,
            time_weight=torch.randn(width),
        )
        z, s = torch.randn(rows, num_quantiles) * 2, torch.rand(rows)
    else:
        field = FlowField(
            bias=magnitudes((rows, width), -45, 4),
            gain=magnitudes((rows, width), -40, 2) * (torch.rand(rows, width) > 0.2),
            offset=magnitudes((rows,), -45, 2),
            z_weight=magnitudes((width,), -3, 1),
            time_weight=magnitudes((width,), -3, 1),
        )
        z, s = magnitudes((rows, num_quantiles), -45, 4), torch.rand(rows)
    actual = flow_velocity(field, z, s).double()
    exact = FlowField(*(tensor.double() for tensor in field))
    z, s = z.double(), s.double()
    error = (actual - reference.flow_velocity(exact, z, s)).abs()
    size = exact.bias.abs().unsqueeze(1) + (z.unsqueeze(-1) * exact.z_weight).abs()
    size = size + (s[:, None, None] * exact.time_weight).abs()
    scale = exact.offset.abs().unsqueeze(1) + (exact.gain.abs().unsqueeze(1) * size).sum(-1)
    # A sum below the smallest normal float32 has an absolute error instead.
    assert (error <= VELOCITY * scale + 2.0**-126).all(), (error / scale).max()


def test_wide_field_sums_accurately(variant):
    # All terms of one sign: the sum of 5000 of them is where float32 drifts.
    shapes = ((2, 5000), (2, 5000), (2,), (5000,), (5000,))
    field = FlowField(*(torch.rand(shape) for shape in shapes))
    z = torch.rand(2, 9)
    exact = velocity_by_formula(FlowField(*(t.double() for t in field)), z.double(), 0.5)
    assert ((flow_velocity(field, z, 0.5).double() - exact).abs() <= VELOCITY * exact).all()


def test_infinities_and_nan_propagate(variant):
    # silu(inf) = inf, silu(-inf) = nan, as torch.nn.functional.silu; 0 * inf = nan.
    special = torch.tensor([math.inf, -math.inf, math.nan, 1e4, -1e4, 0.0, 1.0])
    rows = len(special)
    field = FlowField(
        bias=torch.stack((special, torch.full((rows,), 0.25)), -1),
        gain=torch.ones(rows, 2),
        offset=torch.zeros(rows),
        z_weight=torch.tensor([0.5, 1.0]),
        time_weight=torch.zeros(2),
    )
    for gain in (1.0, -1.0, 0.0):
        scaled = field._replace(gain=field.gain * gain)
        z = special.repeat(rows, 1)
        tensors = {**scaled._asdict(), "z": z}
        own = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        distribution = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        actual, expected = (
            function(FlowField(*(t[name] for name in FlowField._fields)), t["z"], 0.5)
            for function, t in ((flow_velocity, own), (reference.flow_velocity, distribution))
        )
        assert_same_specials(actual, expected, f"velocity at gain {gain}")
        actual.backward(torch.ones_like(z))
        expected.backward(torch.ones_like(z))
        for name in ("bias", "offset", "z"):
            assert_same_specials(own[name].grad, distribution[name].grad, f"{name} at gain {gain}")


def assert_same_specials(actual, expected, what):
    assert torch.equal(actual.isnan(), expected.isnan()), what
    finite = expected.isfinite()
    assert torch.equal(actual[~finite].nan_to_num(), expected[~finite].nan_to_num()), what
    absolute, relative = VALUE[torch.float32]
    torch.testing.assert_close(actual[finite], expected[finite], atol=absolute, rtol=relative)


def test_non_contiguous_inputs(variant, make_field):
    field, z = make_field((6,), 10), torch.randn(12, 6)
    strided = field._replace(
        bias=field.bias.T.contiguous().T,
        gain=field.gain.repeat_interleave(2, dim=0)[::2],
        offset=field.offset.repeat_interleave(3)[::3],
        z_weight=field.z_weight.repeat_interleave(2)[::2],
    )
    times = torch.rand(12, 6)
    actual = flow_velocity(strided, z.T, times.T)
    assert torch.equal(actual, flow_velocity(field, z.T.contiguous(), times.T.contiguous()))


def test_gradcheck_of_the_reference(make_field):
    field, z = make_field((2,), 3, torch.float64), torch.randn(2, 4, dtype=torch.float64)
    s = torch.rand(2, 4, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (*field, z, s)]
    assert torch.autograd.gradcheck(
        lambda *t: reference.flow_velocity(FlowField(*t[:5]), *t[5:]), inputs
    )


@pytest.mark.parametrize("time_shape", [(1, 1), (5, 1), (5, 9)], ids=str)
def test_opcheck(make_field, time_shape):
    field, z, s = make_field((5,), 4), torch.randn(5, 9), torch.rand(time_shape)
    inputs = [tensor.requires_grad_() for tensor in (*field, z, s)]
    torch.library.opcheck(torch.ops.dfpo.flow_velocity.default, inputs)
    detached = [tensor.detach() for tensor in inputs]
    torch.library.opcheck(
        torch.ops.dfpo.flow_velocity_backward.default, (torch.randn(5, 9), *detached)
    )


def test_compile_and_autocast(make_field, with_grad):
    own, twins = with_grad(**make_field((5,), 8)._asdict(), z=torch.randn(5, 9))

    def run(t):
        return flow_velocity(FlowField(*list(t.values())[:5]), t["z"], 0.25)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = torch.compile(run, fullgraph=True, backend="aot_eager")(own)
    assert actual.dtype == torch.float32
    expected = run(twins)
    assert_near(actual, expected)
    actual.square().sum().backward()
    expected.square().sum().backward()
    assert_same_gradients(own, twins)


def test_second_derivative_is_that_of_the_definition(make_field):
    field, z = make_field((2,), 3), torch.randn(2, 4, requires_grad=True)

    def second(velocity):
        (grad,) = torch.autograd.grad(velocity(field, z, 0.0).sum(), z, create_graph=True)
        return torch.autograd.grad(grad.sum(), z)[0]

    torch.testing.assert_close(second(flow_velocity), second(reference.flow_velocity))


def changed(**parts):
    return lambda field: {"field": field._replace(**parts)}


BAD = {
    "field": (TypeError, "field: got tuple, must be a FlowField", lambda f: {"field": tuple(f)}),
    "gain shape": (
        ValueError,
        r"field.gain: has shape \[2, 4\], must be \[2, 3\]",
        changed(gain=torch.zeros(2, 4)),
    ),
    "offset rank": (
        ValueError,
        r"field.offset: has shape \[2, 1\], must be \[2\]",
        changed(offset=torch.zeros(2, 1)),
    ),
    "bias rank": (
        ValueError,
        r"field.bias: has shape \[\], must be \[..., W\]",
        changed(bias=torch.zeros(())),
    ),
    "no units": (ValueError, "field.bias: has W = 0", changed(bias=torch.zeros(2, 0))),
    "z_weight": (
        ValueError,
        r"field.z_weight: has shape \[4\], must be \[3\]",
        changed(z_weight=torch.zeros(4)),
    ),
    "dtype": (
        TypeError,
        "field.time_weight: has dtype torch.int64",
        changed(time_weight=torch.zeros(3).long()),
    ),
    "device": (
        ValueError,
        "field.z_weight: is on device meta, must be on cpu",
        changed(z_weight=torch.zeros(3, device="meta")),
    ),
    "z type": (TypeError, "z: got list, must be a torch.Tensor", lambda f: {"z": [1.0]}),
    "z rows": (
        ValueError,
        r"z: has shape \[3, 5\], must be \[2, 5\]",
        lambda f: {"z": torch.zeros(3, 5)},
    ),
    "z empty": (ValueError, "z: has Q = 0", lambda f: {"z": torch.zeros(2, 0)}),
    "time shape": (
        ValueError,
        r"flow_time: has shape \[3\], must be \[2\]",
        lambda f: {"flow_time": torch.zeros(3)},
    ),
    "time per quantile": (
        ValueError,
        r"flow_time: has shape \[2, 4\], must be \[2, 5\]",
        lambda f: {"flow_time": torch.zeros(2, 4)},
    ),
    "time number": (
        ValueError,
        "flow_time: is nan, must be a finite number",
        lambda f: {"flow_time": math.nan},
    ),
    "time type": (TypeError, "flow_time: got str, must be a number", lambda f: {"flow_time": "0"}),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_errors_name_the_argument(make_field, case):
    error, message, change = case
    field = make_field((2,), 3)
    arguments = {"field": field, "z": torch.zeros(2, 5), "flow_time": 0.0, **change(field)}
    with pytest.raises(error, match=message):
        flow_velocity(**arguments)
