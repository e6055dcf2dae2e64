"""The Triton kernels on the interpreter (test_gpu.py runs them on a GPU): the public functions with
the launchers in place of the C++ kernels, against the float64 reference."""

import contextlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from kernels.stand_ins import triton_answers
from tolerances import VALUE, assert_near, assert_same_gradients

import dfpo_kernels
from dfpo_kernels import FlowField, integrate_flow, reference
from dfpo_kernels.integrate_flow.reference import METHODS

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("there is a GPU: test_gpu.py runs the kernels there", allow_module_level=True)

from dfpo_kernels.flow_consistency_loss import triton_kernel as consistency  # noqa: E402
from dfpo_kernels.integrate_flow import triton_kernel as flow  # noqa: E402
from dfpo_kernels.quantile_huber_loss import triton_kernel as huber  # noqa: E402

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture
def use():
    """Runs the ops on CPU tensors by launchers: use() by the project's, use(module) by those of a
    changed copy."""
    with contextlib.ExitStack() as stack:
        yield lambda *module: stack.enter_context(triton_answers(*module))


def assert_is_reference(run, tensors):
    """run(ops, tensors) with the kernels and with the reference: value and every gradient."""
    own = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    twins = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
    actual, expected = run(dfpo_kernels, own), run(reference, twins)
    assert_near(actual, expected)
    upstream = torch.randn(expected.shape)
    actual.backward(upstream.to(actual.dtype))
    expected.backward(upstream.to(actual.dtype).double())
    assert_same_gradients(own, twins)


def flow_tensors(make_field, lead, num_quantiles, width, dtypes=(F32, F32), **more):
    field = make_field(lead, width, dtypes[0])
    return field._asdict() | {"base": torch.randn((*lead, num_quantiles)).to(dtypes[1])} | more


def integrated(**options):
    def run(ops, t):
        field = FlowField(*(t[name] for name in FlowField._fields))
        times = {name: t[name] for name in ("start", "end") if name in t}
        return ops.integrate_flow(field, t["base"], **times, **options)

    return run


def velocity_of(ops, t):
    return ops.flow_velocity(FlowField(*(t[name] for name in FlowField._fields)), t["base"], t["s"])


def consistency_of(steps=2, method="euler", with_shortcut=True):
    def run(ops, t):
        field = FlowField(*(t[name] for name in FlowField._fields))
        if not with_shortcut:
            return ops.flow_consistency_loss(field, t["base"], steps=steps, method=method)
        shortcut = FlowField(*(t[f"shortcut_{name}"] for name in FlowField._fields))
        field = FlowField(*(tensor.detach() for tensor in field))
        return ops.flow_consistency_loss(
            field, t["base"], shortcut=shortcut, steps=steps, method=method
        )

    return run


def regression(**options):
    return lambda ops, t: ops.quantile_huber_loss(t["quantiles"], t["targets"], **options)


# lead, Q, W, K, method, field dtype, base dtype
FLOWS = [
    ((5,), 33, 40, 2, "euler", F32, F32),
    ((5,), 33, 40, 2, "midpoint", F32, F32),
    ((5,), 33, 40, 2, "heun", F32, F32),
    ((5,), 33, 40, 2, "rk4", F32, F32),
    ((2,), 130, 7, 1, "rk4", BF16, F32),
    ((33,), 5, 3, 3, "heun", BF16, BF16),
    ((3,), 17, 5, 2, "midpoint", F16, F16),
    ((), 9, 70, 1, "euler", F16, F32),
    ((4,), 1, 1, 1, "rk4", F32, BF16),
]


@pytest.mark.parametrize("case", FLOWS, ids=str)
def test_integrate_flow(use, make_field, case):
    lead, num_quantiles, width, steps, method, *dtypes = case
    use()
    tensors = flow_tensors(
        make_field, lead, num_quantiles, width, dtypes,
        start=(torch.rand(lead) * 0.4).to(dtypes[0]), end=torch.rand(lead) + 0.5,
    )  # fmt: skip
    trajectory = method in ("midpoint", "rk4")
    assert_is_reference(integrated(steps=steps, method=method, trajectory=trajectory), tensors)


def test_shared_base_and_times(use, make_field):
    use()
    tensors = flow_tensors(make_field, (6,), 18, 5)
    tensors |= {"base": torch.randn(18), "start": torch.tensor(0.1), "end": torch.tensor(0.8)}
    assert_is_reference(integrated(steps=2, method="heun"), tensors)


def test_rows_in_chunks_have_the_same_gradients(use, make_field, monkeypatch):
    use()
    chunks = []
    monkeypatch.setattr(flow, "SCRATCH_FLOATS", 3 * 2 * 2 * 2 * 9)
    split = flow.row_chunks
    monkeypatch.setattr(flow, "row_chunks", lambda *a: chunks.append(split(*a)) or chunks[-1])
    tensors = flow_tensors(make_field, (8,), 9, 5, end=torch.rand(8))
    assert_is_reference(integrated(steps=2, method="heun", trajectory=True), tensors)
    assert [len(range(*c.indices(8))) for c in chunks[0]] == [3, 3, 2]


def test_a_gradient_repeats_bit_for_bit(use, make_field):
    use()
    tensors = flow_tensors(make_field, (40,), 5, 3)
    results = []
    for _ in range(2):
        own = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        integrated(steps=1)(dfpo_kernels, own).square().sum().backward()
        results.append([t.grad for t in own.values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("lead", "num_quantiles", "width", "time", "dtype"),
    [((5,), 33, 40, "scalar", F32), ((2, 3), 130, 7, "row", BF16), ((3,), 9, 70, "each", F16)],
)
def test_flow_velocity(use, make_field, lead, num_quantiles, width, time, dtype):
    use()
    shape = {"scalar": (), "row": lead, "each": (*lead, num_quantiles)}[time]
    tensors = flow_tensors(make_field, lead, num_quantiles, width, (dtype, dtype))
    assert_is_reference(velocity_of, tensors | {"s": torch.rand(shape)})


@pytest.mark.parametrize(("method", "dtype"), [("euler", F32), ("rk4", BF16)])
def test_flow_consistency_loss(use, make_field, method, dtype):
    use()
    tensors = flow_tensors(make_field, (5,), 33, 9, (dtype, F32))
    assert_is_reference(consistency_of(2, method, with_shortcut=False), tensors)
    shortcut = make_field((5,), 4, dtype)._asdict()
    own = tensors | {f"shortcut_{name}": t for name, t in shortcut.items()}
    own = {name: t.clone().requires_grad_() for name, t in own.items()}
    twins = {name: t.detach().double().requires_grad_() for name, t in own.items()}
    run = consistency_of(2, method)
    actual, expected = run(dfpo_kernels, own), run(reference, twins)
    assert_near(actual, expected)
    actual.sum().backward()
    expected.sum().backward()
    assert own["bias"].grad is None
    trained = [name for name in own if name.startswith("shortcut") or name == "base"]
    assert_same_gradients({n: own[n] for n in trained}, {n: twins[n] for n in trained})


@pytest.mark.parametrize("kappa", [0.05, 0.7, 0.0])
@pytest.mark.parametrize(
    ("shape", "dtypes"),
    [((5, 33, 40), (F32, F32)), ((3, 130, 7), (BF16, F32)), ((40, 1, 1), (F16, BF16))],
)
def test_quantile_huber_loss(use, shape, dtypes, kappa):
    use()
    rows, num_quantiles, num_targets = shape
    tensors = {
        "quantiles": torch.randn(rows, num_quantiles).to(dtypes[0]),
        "targets": torch.randn(rows, num_targets).to(dtypes[1]),
    }
    assert_is_reference(regression(kappa=kappa), tensors)
    taus = torch.rand(num_quantiles)
    options = {"kappa": kappa, "quantile_reduction": "sum"}
    run = regression(taus=taus, **options)
    actual = run(dfpo_kernels, tensors)
    expected = reference.quantile_huber_loss(
        *(t.double() for t in tensors.values()), taus=taus.double(), **options
    )
    assert_near(actual, expected)


def test_no_rows_and_strided_rows(use, make_field):
    use()
    assert_is_reference(integrated(steps=2), flow_tensors(make_field, (0,), 4, 3))
    empty = {"quantiles": torch.zeros(0, 4), "targets": torch.zeros(0, 3)}
    assert_is_reference(regression(), empty)
    tensors = flow_tensors(make_field, (6,), 9, 5)
    strided = {name: t.T.contiguous().T if t.dim() == 2 else t for name, t in tensors.items()}
    out = integrated(steps=2)(dfpo_kernels, strided)
    assert torch.equal(out, integrated(steps=2)(dfpo_kernels, tensors))


def test_the_triton_kernels_answer_and_then_the_cpu_kernels_again(make_field, monkeypatch):
    def refuse(*args):
        raise AssertionError("the C++ kernel ran")

    room = importlib.import_module("dfpo_kernels.integrate_flow.velocity")
    monkeypatch.setattr(room, "_direct_call", refuse)
    field, z = make_field((2,), 3), torch.randn(2, 4)
    with triton_answers():
        dfpo_kernels.flow_velocity(field, z, 0.5)
    with pytest.raises(AssertionError, match="the C"):
        dfpo_kernels.flow_velocity(field, z, 0.5)


# --- the approximate branch of NVIDIA GPUs --------------------------------------------------------


def test_the_approximate_branch_is_for_half_precision_on_nvidia(make_field):
    for dtype in (F32, BF16, F16):
        assert flow.sigmoid_of(make_field((1,), 2, dtype)) == "exact"
        with torch._subclasses.FakeTensorMode():
            fake = FlowField(*(torch.empty(2, 2, dtype=dtype, device="cuda") for _ in range(5)))
        assert flow.sigmoid_of(fake) == ("exact" if dtype == F32 else "approximate")


def test_values_with_the_rounding_of_the_approximate_branch(use, make_field, monkeypatch):
    """tanh rounded to 11 bits, as far off as NVIDIA documents for tanh.approx.f32 (2^-11 relative,
    PTX ISA), stays within the tolerance of the coefficients' dtype, value and gradients."""
    use()
    tensors = flow_tensors(make_field, (5,), 33, 16, (BF16, F32))
    exact = integrated(steps=4, method="heun")(dfpo_kernels, tensors)
    monkeypatch.setattr(flow, "sigmoid_of", lambda field: "rounded")
    own = {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}
    twins = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
    rounded = integrated(steps=4, method="heun")(dfpo_kernels, own)
    expected = integrated(steps=4, method="heun")(reference, twins)
    bound = VALUE[BF16][0]
    error = ((rounded - expected).abs().max() / expected.abs().max()).item()
    # The rounding is there, and is what is bounded.
    assert (rounded - exact).abs().max() > 1e-6 and error < bound / 3
    rounded.square().sum().backward()
    expected.square().sum().backward()
    for name, tensor in own.items():
        difference = (tensor.grad.double() - twins[name].grad).abs().max()
        assert difference < bound * twins[name].grad.abs().max(), name


@pytest.mark.parametrize("sign", [1, -1])
def test_the_worst_error_of_tanh_stays_within_half_precision(make_field, sign):
    """Every tanh off by 2^-11 in the same direction, which no rounding does, in float64."""
    field = make_field((64,), 64, torch.float64)
    base = torch.randn(64, 32, dtype=torch.float64)

    def velocity(z, s):
        x = field.bias.unsqueeze(-2) + z.unsqueeze(-1) * field.z_weight + s * field.time_weight
        tanh = torch.tanh(x / 2) * (1 + sign * 2.0**-11)
        silu = x * (0.5 + 0.5 * tanh)
        return (silu * field.gain.unsqueeze(-2)).sum(-1) + field.offset.unsqueeze(-1)

    for method in METHODS:
        off = integrate_flow(velocity, base, steps=8, method=method)
        distribution = reference.integrate_flow(field, base, steps=8, method=method)
        error = ((off - distribution).abs().max() / distribution.abs().max()).item()
        assert 1e-6 < error < VALUE[BF16][0]


def test_launch_parameters_are_a_frozen_table_with_reasons():
    for launch in (*flow.LAUNCHES.values(), huber.LAUNCH, consistency.LAUNCH):
        assert launch.reason and launch.elements % (32 * launch.warps) == 0
        with pytest.raises(AttributeError):
            launch.warps = 8
    with pytest.raises(TypeError):
        flow.LAUNCHES["forward"] = flow.LAUNCHES["adjoint"]


@pytest.mark.parametrize(
    ("columns", "tile"),
    [(64, (16, 64)), (200, (32, 32)), (33, (16, 64)), (1, (1024, 1)), (130, (32, 32))],
)
def test_a_tile_wastes_few_lanes(columns, tile):
    # 200 = 6.25 x 32: 7 tiles of 32 hold 224 lanes, 4 of 64 hold 256; 130: 160 against 192.
    assert flow.tile_of(1024, columns) == tile


# --- broken copies --------------------------------------------------------------------------------

BROKEN = {
    "forgets a unit": (flow, "velocity", "tl.range(0, W, loop_u", "tl.range(1, W, loop_u"),
    "stale time": (flow, "integral", "(k + node_of(METHOD, 1)) / steps", "(k / steps)"),
    "stops one step early": (flow, "integral", "in tl.range(0, steps):", "in tl.range(1, steps):"),
    "sums rows that are not there": (
        flow, "integral", "tl.where(wanted, g * sum_z, 0.0)", "g * sum_z",
    ),
    "forgets a particle": (
        flow, "integral", "tl.range(0, Q, loop_unroll", "tl.range(1, Q, loop_unroll",
    ),
    "forgets a stage's gradient": (flow, "integral", "direct += d1", "direct += 0.0 * d1"),
    "wrong derivative": (flow, "velocity", "(silu - silu * sigma)", "(sigma - silu * sigma)"),
    "sums lanes that are not there": (
        consistency, "consistency", "tl.where(q < Q, difference * difference, 0.0)",
        "difference * difference",
    ),
    "wrong flow time": (consistency, "consistency", "start + 1.0", "start + 0.9"),
    "loss of lanes that are not there": (
        huber, "regression", "tl.where(i < Q, losses, 0.0)", "losses",
    ),
    "forgets a target": (huber, "regression", "tl.range(0, P, loop_u", "tl.range(1, P, loop_u"),
    "wrong side": (huber, "regression", "tl.where(u < 0.0, 1.0 - tau, tau)", "tau"),
}  # fmt: skip


def source_of(module):
    """A room's kernels and launchers in one text, so that a changed kernel is what is launched."""
    parts = [Path(module.__file__)]
    if module is flow:
        names = ("field", "forward", "backward", "kernel")
        parts = [parts[0].with_name(f"triton_{name}.py") for name in names]
    text = "".join(
        part.read_text().replace("from __future__ import annotations", "") for part in parts
    )
    own = r"from dfpo_kernels\.integrate_flow\.triton_(?:field|forward|backward) import "
    return re.sub(own + r"(?:\([^)]*\)|[^\n]*)", "", text) if module is flow else text


def broken_copy(module, text, replacement, folder):
    source = source_of(module)
    assert text in source
    path = folder / "broken_kernel.py"
    path.write_text(source.replace(text, replacement))
    spec = importlib.util.spec_from_file_location("broken_kernel", path)
    copy = importlib.util.module_from_spec(spec)
    sys.modules["broken_kernel"] = copy
    spec.loader.exec_module(copy)
    return copy


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_copy_is_noticed(use, make_field, tmp_path, monkeypatch, name):
    module, op, text, replacement = BROKEN[name]
    monkeypatch.setitem(sys.modules, "broken_kernel", None)
    tensors = flow_tensors(make_field, (5,), 9, 6, end=torch.rand(5) + 0.5)
    pair = {"quantiles": torch.randn(5, 9), "targets": torch.randn(5, 7)}
    field_and_base = {name: t for name, t in tensors.items() if name != "end"}
    run, tensors = {
        "velocity": (velocity_of, field_and_base | {"s": torch.rand(5)}),
        "integral": (integrated(steps=2, method="heun"), tensors),
        "consistency": (consistency_of(2, with_shortcut=False), field_and_base),
        "regression": (regression(), pair),
    }[op]
    use()
    assert_is_reference(run, tensors)
    use(broken_copy(module, text, replacement, tmp_path))
    with pytest.raises(AssertionError):
        assert_is_reference(run, tensors)
