"""The ops on a GPU: values, gradients, dtypes, streams, repeatability and memory. Nothing here runs
on the interpreter or an emulation; where there is no GPU it is skipped. ``make gpu-day``."""

import pytest
import torch
from kernels.scans import make_scan
from tolerances import SCAN, VALUE, assert_near

import dfpo_kernels
from dfpo_kernels import FlowField, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
NAMES = FlowField._fields


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """No reference answers here in silence."""
    monkeypatch.setattr("dfpo_kernels._dispatch.MODE", "strict")


def flow_tensors(make_field, rows, num_quantiles, width, dtype=F32):
    tensors = make_field((rows,), width, dtype)._asdict() | {
        "base": torch.randn(rows, num_quantiles),
        "end": torch.rand(rows) + 0.5,
    }
    return tensors


def integrated(ops, t, **options):
    return ops.integrate_flow(FlowField(*(t[n] for n in NAMES)), t["base"], end=t["end"], **options)


def consistency(ops, t, **options):
    return ops.flow_consistency_loss(FlowField(*(t[n] for n in NAMES)), t["base"], **options)


def velocity(ops, t):
    return ops.flow_velocity(FlowField(*(t[n] for n in NAMES)), t["base"], t["end"])


def regression(ops, t, **options):
    return ops.quantile_huber_loss(t["base"], t["targets"], **options)


def run_both(run, tensors):
    """(value, gradients) on the GPU and of the float64 reference on the CPU."""
    results = []
    for ops, place in ((dfpo_kernels, {"device": "cuda"}), (reference, {"dtype": torch.float64})):
        leaves = {name: t.detach().to(**place).requires_grad_() for name, t in tensors.items()}
        out = run(ops, leaves)
        upstream = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape)
        out.backward(upstream.to(out))
        results.append((out.detach().cpu(), {n: leaf.grad for n, leaf in leaves.items()}))
    return results


def assert_is_reference(run, tensors, tolerance=None):
    (value, grads), (expected_value, twins) = run_both(run, tensors)
    pairs = [(value, expected_value, "value")]
    pairs += [(grads[n].cpu(), twins[n], n) for n in grads if grads[n] is not None]
    for actual, expected, name in pairs:
        if tolerance is None:
            assert_near(actual, expected, name)
            continue
        # A gradient that is zero by definition must be zero: at flow time 0 no time weight counts.
        error = (actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
        assert error < tolerance, f"{name}: {error}"


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4"])
@pytest.mark.parametrize("size", [(5, 33, 40, 3), (300, 64, 64, 8), (7, 200, 128, 2)], ids=str)
def test_integrate_flow(make_field, size, method):
    rows, num_quantiles, width, steps = size
    tensors = flow_tensors(make_field, rows, num_quantiles, width)
    options = {"steps": steps, "method": method, "trajectory": method in ("heun", "rk4")}
    assert_is_reference(lambda ops, t: integrated(ops, t, **options), tensors)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_half_precision_coefficients_take_the_approximate_branch(make_field, dtype):
    """Its tanh is off by at most 2^-11; the tolerance is that of bfloat16."""
    tensors = flow_tensors(make_field, 300, 64, 64, dtype)
    assert_is_reference(lambda ops, t: integrated(ops, t, steps=8), tensors, VALUE[BF16][0])
    assert_is_reference(velocity, tensors, VALUE[BF16][0])
    assert_is_reference(
        lambda ops, t: consistency(ops, t, steps=4),
        {name: t for name, t in tensors.items() if name != "end"},
        2 * VALUE[BF16][0],
    )


def test_velocity_and_consistency(make_field):
    tensors = flow_tensors(make_field, 129, 33, 40)
    assert_is_reference(velocity, tensors)
    del tensors["end"]
    assert_is_reference(lambda ops, t: consistency(ops, t, method="heun"), tensors)


@pytest.mark.parametrize("kappa", [0.05, 0.0])
@pytest.mark.parametrize(
    "shape", [(5, 33, 40), (300, 64, 64), (9, 200, 130), (40, 200, 200), (3, 1000, 513)]
)
def test_quantile_huber_loss(shape, kappa):
    rows, num_quantiles, num_targets = shape
    tensors = {
        "base": torch.randn(rows, num_quantiles),
        "targets": torch.randn(rows, num_targets),
    }
    assert_is_reference(lambda ops, t: regression(ops, t, kappa=kappa), tensors)


@pytest.mark.parametrize("mode", ["carry", "zero", "none"])
@pytest.mark.parametrize("shape", [(3, 5000, 1), (33, 100, 7), (33, 100, 48), (2, 700, 200)])
def test_scans(shape, mode):
    inputs = make_scan(*shape)
    names = ("rewards", "quantiles", "bootstrap")
    tensors = {name: inputs[name] for name in names}
    flags = {"mask": inputs["mask"], "done": inputs["done"]}

    def scan(op, **options):
        def run(ops, t):
            place = {name: x.to(t["rewards"].device) for name, x in flags.items()}
            out = getattr(ops, op)(**t, **place, gamma=0.95, lam=0.9, mask_mode=mode, **options)
            return torch.stack(out) if isinstance(out, tuple) else out

        return run

    tolerance = 20 * SCAN[F32][0]
    assert_is_reference(scan("distributional_gae"), tensors, tolerance)
    assert_is_reference(scan("lambda_mixture_targets", seed=2**40), tensors, tolerance)


@pytest.mark.parametrize("num_quantiles", [1, 6, 64])
def test_the_bits_of_the_mixture_are_those_of_the_cpu(num_quantiles):
    inputs = make_scan(8, 300, num_quantiles)
    options = {"gamma": 1.0, "lam": 0.5, "seed": 11}
    cpu = dfpo_kernels.lambda_mixture_targets(**inputs, **options)
    cuda = dfpo_kernels.lambda_mixture_targets(
        **{name: t.cuda() for name, t in inputs.items()}, **options
    )
    torch.testing.assert_close(cuda.cpu(), cpu, atol=1e-3, rtol=1e-4)


def test_everything_repeats_bit_for_bit(make_field):
    tensors = flow_tensors(make_field, 5000, 64, 64)
    scan = make_scan(16, 500, 5)

    def once():
        leaves = {n: t.cuda().requires_grad_() for n, t in tensors.items()}
        integrated(dfpo_kernels, leaves, method="heun").square().sum().backward()
        own = {n: t.cuda() for n, t in scan.items()}
        own["rewards"].requires_grad_()
        dfpo_kernels.distributional_gae(**own, gamma=0.9, lam=0.9)[0].square().sum().backward()
        return [leaf.grad for leaf in leaves.values()] + [own["rewards"].grad]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


def test_the_current_stream_is_used(make_field):
    """An op on a side stream waits for what that stream does, and the default stream does not."""
    tensors = {n: t.cuda() for n, t in flow_tensors(make_field, 256, 64, 64).items()}
    scan = {n: t.cuda() for n, t in make_scan(16, 500, 5).items()}
    expected = integrated(dfpo_kernels, tensors)
    advantages, _ = dfpo_kernels.distributional_gae(**scan, gamma=0.9, lam=0.9)
    base, rewards = tensors["base"].clone(), scan["rewards"].clone()
    tensors["base"].zero_()
    scan["rewards"].zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        tensors["base"].copy_(base)
        scan["rewards"].copy_(rewards)
        out = integrated(dfpo_kernels, tensors)
        late, _ = dfpo_kernels.distributional_gae(**scan, gamma=0.9, lam=0.9)
        assert not stream.query()
    stream.synchronize()
    assert torch.equal(out, expected) and torch.equal(late, advantages)


def test_memory_of_forward_and_backward():
    rows, num_quantiles, width, steps = 32768, 64, 64, 8
    shapes = [(rows, width), (rows, width), (rows,), (width,), (width,), (rows, num_quantiles)]
    inputs = [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]
    upstream = torch.randn(rows, num_quantiles, device="cuda")

    def run():
        out = dfpo_kernels.integrate_flow(FlowField(*inputs[:5]), inputs[5], steps=steps)
        return torch.autograd.grad(out, inputs, upstream)

    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradients = sum(g.numel() * 4 for g in run())
    tensors = (torch.cuda.max_memory_allocated() - before - gradients) / (rows * num_quantiles * 4)
    # The result, the path of K states and 16 MiB of scratch, which are two tensors of [R, Q] here.
    assert steps < tensors <= steps + 4


def test_compiled_whole(make_field):
    tensors = {n: t.cuda() for n, t in flow_tensors(make_field, 64, 33, 20).items()}
    run = torch.compile(lambda t: integrated(dfpo_kernels, t).square().sum(-1), fullgraph=True)
    expected = integrated(dfpo_kernels, tensors).square().sum(-1)
    torch.testing.assert_close(run(tensors), expected)


def test_warmup_compiles_what_a_run_needs(make_field):
    from dfpo_kernels.integrate_flow import triton_kernel

    def compiled():
        caches = triton_kernel.integrate_kernel.device_caches
        return sum(len(cache[0]) for cache in caches.values())

    dfpo_kernels.warmup("cuda", num_quantiles=24, width=20, steps=3, method="rk4")
    before = compiled()
    tensors = {n: t.cuda() for n, t in flow_tensors(make_field, 48, 24, 20).items()}
    del tensors["end"]
    for base in (tensors["base"], tensors["base"][0]):
        field = FlowField(*(tensors[name] for name in NAMES))
        dfpo_kernels.integrate_flow(field, base, steps=3, method="rk4")
    assert compiled() == before
