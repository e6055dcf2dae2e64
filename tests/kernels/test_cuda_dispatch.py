"""CUDA tensors on a machine without a CUDA device: as fake tensors every op traces to what the CPU
returns, and the dispatcher holds a kernel for each. Without a device autograd cannot run on them,
so backward ops are traced by name."""

import contextlib
import subprocess
import sys

import pytest
import torch
from kernels.scans import make_scan

import dfpo_kernels
from dfpo_kernels import FlowField, _dispatch

R, Q, P, W, K = 3, 9, 7, 4, 2
OPS = torch.ops.dfpo


def field(dtype):
    return tuple(
        torch.ones(shape, dtype=dtype) for shape in ((R, W), (R, W), (R,), (W,), (W,))
    )  # fmt: skip


def public_calls(dtype):
    """Name of the op -> function of tensors, and its tensors."""
    base, pair = torch.ones(R, Q, dtype=dtype), torch.ones(R, P)
    scan = make_scan(R, 6, Q)
    scan["quantiles"] = scan["quantiles"].to(dtype)
    packed = {name: t.flatten(0, 1) for name, t in scan.items() if name != "bootstrap"}
    lam = torch.full((R,), 0.5)
    return {
        "integrate_flow": (
            lambda f, b, s: dfpo_kernels.integrate_flow(
                FlowField(*f), b, steps=K, method="rk4", end=s, trajectory=True
            ),
            (field(torch.bfloat16), base, torch.ones(R)),
        ),
        "flow_velocity": (
            lambda f, b: dfpo_kernels.flow_velocity(FlowField(*f), b, 0.5),
            (field(dtype), base),
        ),
        "flow_consistency_loss": (
            lambda f, b: dfpo_kernels.flow_consistency_loss(FlowField(*f), b, steps=K),
            (field(dtype), torch.ones(Q)),
        ),
        "quantile_huber_loss": (dfpo_kernels.quantile_huber_loss, (base, pair)),
        "distributional_gae": (
            lambda t, lam: dfpo_kernels.distributional_gae(**t, gamma=0.9, lam=lam, target_lam=0.5),
            (scan, lam),
        ),
        "lambda_mixture_targets": (
            lambda t: dfpo_kernels.lambda_mixture_targets(**t, gamma=0.9, lam=0.5, seed=3),
            (scan,),
        ),
        "packed": (
            lambda t, n: dfpo_kernels.distributional_gae(**t, gamma=0.9, lam=0.5, cu_seqlens=n),
            (packed, torch.arange(0, 6 * R + 1, 6)),
        ),
    }  # fmt: skip


def backward_calls(dtype):
    """Arguments of each backward op."""
    f, z, time = field(dtype), torch.ones(R, Q), torch.ones(R, 1)
    full = torch.ones(R, 6, Q, dtype=dtype)
    mask, lam, rows = torch.ones(R, 6), torch.ones(R), torch.arange(R)
    gamma = _dispatch.number(0.9)
    path = torch.ones(R, K, Q)
    return {
        "integrate_flow_backward": (
            z, *f, path, time, time[:1], True, K, "heun", False, True,
        ),
        "flow_velocity_backward": (z, *f, z, time),
        "distributional_gae_backward": (
            full, full, mask, lam, None, None, None, gamma, "carry", Q, False, True, True, True,
            False,
        ),
        "lambda_mixture_targets_backward": (
            full, mask, lam, rows, None, None, gamma, 3, "zero", True, True, True,
        ),
    }  # fmt: skip


def to_cuda(x):
    if isinstance(x, torch.Tensor):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")
    if isinstance(x, dict):
        return {name: to_cuda(value) for name, value in x.items()}
    return type(x)(map(to_cuda, x)) if isinstance(x, tuple) else x


def assert_same_kind(fake, real):
    fake, real = (x if isinstance(x, tuple) else (x,) for x in (fake, real))
    assert len(fake) == len(real)
    for one, other in zip(fake, real, strict=True):
        assert one.device.type == "cuda"
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


@contextlib.contextmanager
def fake_cuda():
    with torch._subclasses.FakeTensorMode(), torch.no_grad():
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", public_calls(torch.float32))
def test_an_op_on_fake_cuda_tensors(name, dtype):
    call, inputs = public_calls(dtype)[name]
    with torch.no_grad():
        real = call(*inputs)
    with fake_cuda():
        assert_same_kind(call(*to_cuda(inputs)), real)


@pytest.mark.parametrize("name", public_calls(torch.float32))
def test_an_op_is_compiled_whole_with_fake_cuda_tensors(name):
    call, inputs = public_calls(torch.float32)[name]
    real = call(*inputs)
    seen = []

    def backend(graph, _inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    with fake_cuda():
        assert_same_kind(
            torch.compile(call, fullgraph=True, backend=backend)(*to_cuda(inputs)), real
        )
    op = "distributional_gae" if name == "packed" else name
    assert any(target.startswith(f"dfpo.{op}") for target in seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", backward_calls(torch.float32))
def test_a_backward_op_on_fake_cuda_tensors(name, dtype):
    inputs = backward_calls(dtype)[name]
    real = getattr(OPS, name)(*inputs)
    with fake_cuda():
        assert_same_kind(getattr(OPS, name)(*to_cuda(inputs)), real)


def test_the_dispatcher_holds_a_cuda_kernel_for_each_op_of_this_build():
    triton = {"integrate_flow", "flow_velocity", "flow_consistency_loss", "quantile_huber_loss"}
    cuda = {"distributional_gae", "lambda_mixture_targets"}
    for ops, kind, built in (
        (triton, "triton", _dispatch.HAS_TRITON),
        (cuda, "cuda", _dispatch.CUDA_MODULE is not None),
    ):
        for op in ops:
            assert dfpo_kernels.backends()[op]["cuda"] == (kind if built else "reference")
            names = (
                [op]
                if op in ("flow_consistency_loss", "quantile_huber_loss")
                else [op, f"{op}_backward"]
            )
            for name in names:
                held = torch._C._dispatch_has_kernel_for_dispatch_key(f"dfpo::{name}", "CUDA")
                assert held == built, name
    assert set(dfpo_kernels.backends()) == triton | cuda


def test_a_triton_launcher_runs_on_the_device_of_its_tensors(monkeypatch):
    pytest.importorskip("triton")
    entered = []

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *_):
            entered.append("left")

    from dfpo_kernels.integrate_flow import triton_kernel

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(
        triton_kernel, "flow_velocity", lambda *args: entered.append("ran") or args[0]
    )
    launch = _dispatch.triton_launcher("integrate_flow", "flow_velocity")["cuda"]
    with fake_cuda():
        launch(torch.empty(2, device="cuda:1"))
    assert entered == [torch.device("cuda:1"), "ran", "left"]


def test_a_cuda_launcher_uses_the_current_stream_of_the_device(monkeypatch):
    calls = []

    class Stream:
        cuda_stream = 77

    class Module:
        @staticmethod
        def op(*args):
            calls.append(args)

    monkeypatch.setattr(_dispatch, "CUDA_MODULE", Module)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream)
    with fake_cuda():
        _dispatch.launch_cuda("op", torch.empty(1, device="cuda:2"), "arguments")
    assert calls == [("arguments", 2, 77)]


def test_without_triton_the_reference_is_named():
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "triton":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import dfpo_kernels
assert dfpo_kernels.backends()["integrate_flow"]["cuda"] == "reference"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
