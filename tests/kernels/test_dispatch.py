"""Which kernel runs where, and what importing dfpo_kernels does to the process."""

import os
import subprocess
import sys

import pytest
import torch

import dfpo_kernels
from dfpo_kernels import _cpu, _dispatch
from dfpo_kernels.integrate_flow import native
from dfpo_kernels.warmup import exercise

# Every op forward and backward in float32, compared with its reference in float64.
CHECK_ALL = """
import torch
import dfpo_kernels as k
from dfpo_kernels import FlowField, reference

torch.manual_seed(0)
tensors = [torch.randn(3, 4), torch.randn(3, 4), torch.randn(3), torch.randn(4), torch.randn(4)]
tensors += [torch.randn(9), torch.randn(3, 7), torch.rand(3)]
own = [t.clone().requires_grad_() for t in tensors]
twins = [t.double().requires_grad_() for t in tensors]

def run(ops, t):
    field, base, targets, end = FlowField(*t[:5]), *t[5:]
    states = ops.integrate_flow(field, base, steps=2, method="rk4", end=end, trajectory=True)
    quantiles = ops.integrate_flow(field, base, steps=2)
    slopes = ops.flow_velocity(field, quantiles, end)
    loss = ops.flow_consistency_loss(field, base) + ops.quantile_huber_loss(quantiles, targets)
    tokens = targets, quantiles[:, :7].unsqueeze(-1), torch.tensor([[1, 1, 0, 1, 1, 0, 1]] * 3)
    scan = {"gamma": 0.9, "lam": 0.8, "bootstrap": end.unsqueeze(-1)}
    advantages, values = ops.distributional_gae(*tokens, **scan)
    samples = ops.lambda_mixture_targets(*tokens, seed=3, **scan)
    loss = loss + (advantages.square() + values.square() + samples.square()).sum((1, 2))
    (loss.sum() + states.square().sum() + slopes.square().sum()).backward()
    return loss

torch.testing.assert_close(run(k, own).double(), run(reference, twins), atol=1e-5, rtol=1e-5)
for t, twin in zip(own, twins):
    torch.testing.assert_close(t.grad.double(), twin.grad, atol=1e-4, rtol=1e-4)
"""
# Makes the CPU a device without native kernels.
NO_CPU_KERNELS = """
import torch
impl = torch.library.Library.impl
def without_cpu(self, name, fn, key="", **options):
    if not (self.ns == "dfpo" and key == "CPU"):
        impl(self, name, fn, key, **options)
torch.library.Library.impl = without_cpu
"""


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_backends_names_kernel_and_variant(variant):
    assert dfpo_kernels.backends()["integrate_flow"] == {
        "cpu": f"cpp {variant}",
        "cuda": "triton" if _dispatch.HAS_TRITON else "reference",
    }


def test_fresh_memory_is_poisoned():
    (gradient,) = native.empty_gradients(torch.zeros(3))
    assert gradient.isnan().all()


def test_reference_mode_runs_the_references():
    child = run_python(
        CHECK_ALL
        + """
assert set(k.backends()["integrate_flow"].values()) == {"reference"}
assert "dfpo" not in run(k, own).grad_fn.name().lower()
def refuse(*args):
    raise AssertionError("native code ran")
k._cpu.integrate_flow = k._cpu.flow_velocity = k._cpu.flow_consistency_loss = refuse
run(k, own)
""",
        DFPO_KERNELS="reference",
    )
    assert child.returncode == 0, child.stderr


def test_unknown_mode_is_refused():
    child = run_python("import dfpo_kernels", DFPO_KERNELS="fast")
    assert "DFPO_KERNELS: is 'fast', must be one of auto, strict, reference" in child.stderr


def test_device_without_kernels_gets_the_reference_with_a_warning_or_an_error():
    strict = """
k._dispatch.MODE = "strict"
try:
    run(k, own)
except RuntimeError as error:
    print(error)
"""
    child = run_python(NO_CPU_KERNELS + CHECK_ALL + strict)
    assert child.returncode == 0, child.stderr
    assert "no native kernel of integrate_flow for cpu; reinstall dfpo" in child.stderr
    assert "no native kernel of integrate_flow for cpu; reinstall dfpo" in child.stdout


def test_bare_process():
    # Importing and running needs torch alone, obeys the variant override and leaves the
    # floating-point mode of the process as it is.
    bare = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"transformers", "accelerate", "numpy", "scipy", "triton", "dfpo"}:
            raise ModuleNotFoundError(f"refused: {name}", name=name)
sys.meta_path.insert(0, Refuse())
"""
    after = """
assert k.backends()["flow_velocity"]["cpu"] == "cpp portable"
assert (torch.full((64,), 1e-40) * 1.0 == 1e-40).all()
assert float.fromhex("0x1p-1074") * 1.0 > 0.0
"""
    child = run_python(bare + CHECK_ALL + after, DFPO_CPU_VARIANT="portable", DFPO_KERNELS="strict")
    assert child.returncode == 0, child.stderr


def test_unknown_variant_leaves_the_chosen_one():
    chosen = _cpu.variant()
    with pytest.raises(ValueError, match="variant: 'none' is not one of"):
        _cpu.set_variant("none")
    assert _cpu.variant() == chosen


def test_warmup_does_nothing_on_the_cpu_and_calls_every_op_elsewhere(monkeypatch):
    called = []
    monkeypatch.setattr(_cpu, "integrate_flow", lambda *args: called.append(args))
    dfpo_kernels.warmup("cpu")
    assert not called
    monkeypatch.undo()
    for dtype in (torch.float32, torch.bfloat16):
        exercise(torch.device("cpu"), 5, 3, 2, "heun", dtype)
