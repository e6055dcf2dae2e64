"""The CUDA kernels' own text, compiled for the CPU and run thread after thread (csrc/cuda/launch.h)
through the bindings and the Python code that a GPU would use. No GPU runs here."""

import importlib.util
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch
from kernels.scans import double, make_scan, pack
from tolerances import SCAN

import dfpo_kernels
from dfpo_kernels import _dispatch, reference

pybind11 = pytest.importorskip("pybind11")
CSRC = Path(__file__).parents[2] / "csrc"
ROOM = importlib.import_module("dfpo_kernels.distributional_gae")
HAS_MODULE = _dispatch.CUDA_MODULE is not None


@pytest.fixture(scope="module")
def emulated_module(tmp_path_factory):
    compiler = shutil.which("c++") or pytest.skip("needs a C++ compiler")
    library = tmp_path_factory.mktemp("emulation") / "_cuda.so"
    sources = [CSRC / "bindings_cuda.cpp", *sorted((CSRC / "cuda").glob("*.cu"))]
    includes = [f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}"]
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror"]
    subprocess.run(
        [compiler, *flags, "-DDFPO_VARIANT=emulated", *includes, "-x", "c++", *map(str, sources),
         "-o", str(library)],
        check=True,
    )  # fmt: skip
    spec = importlib.util.spec_from_file_location("_cuda", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def emulated_gae(emulated_module, monkeypatch):
    def launch(name, tensor, *args):
        getattr(emulated_module, name)(*args, 0, 0)

    monkeypatch.setattr(_dispatch, "launch_cuda", launch)

    def gae(
        rewards, quantiles, mask, *, gamma, lam, target_lam=None, bootstrap=None, done=None,
        next_quantiles=None, mask_mode="carry", cu_seqlens=None,
    ):  # fmt: skip
        count = len(rewards) if cu_seqlens is None else len(cu_seqlens) - 1
        lams = [None if x is None else torch.as_tensor(x).expand(count) for x in (lam, target_lam)]
        return ROOM._cuda_kernel(
            rewards, quantiles, mask, *lams, bootstrap, done, next_quantiles, cu_seqlens, gamma,
            mask_mode,
        )  # fmt: skip

    return gae


def assert_is_reference(gae, inputs, dtype=torch.float32, **parameters):
    expected = reference.distributional_gae(**double(inputs), **parameters)
    atol, rtol = SCAN[dtype]
    for one, other in zip(gae(**inputs, **parameters), expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other.double(), atol=atol, rtol=rtol)


@pytest.mark.parametrize("mode", ["carry", "zero", "none"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (300, 9, 1), (5, 33, 2), (3, 40, 33), (2, 7, 130)])
def test_is_the_reference(emulated_gae, shape, mode):
    inputs = make_scan(*shape)
    assert_is_reference(emulated_gae, inputs, gamma=0.9, lam=0.8, mask_mode=mode)
    inputs["bootstrap"] = None
    inputs["next_quantiles"] = torch.randn_like(inputs["quantiles"])
    lams = {"lam": torch.rand(shape[0]), "target_lam": torch.rand(shape[0])}
    assert_is_reference(emulated_gae, inputs, gamma=0.9, **lams, mask_mode=mode)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_flags(emulated_gae, dtype):
    inputs = make_scan(5, 21, 3)
    inputs["quantiles"] = inputs["quantiles"].to(dtype)
    for flags in (torch.int64, torch.float32, dtype):
        inputs["mask"], inputs["done"] = inputs["mask"].to(flags), inputs["done"].to(flags)
        assert_is_reference(emulated_gae, inputs, dtype, gamma=0.9, lam=0.8)


def test_packed_and_strided(emulated_gae):
    inputs = make_scan(4, 30, 5)
    assert_is_reference(emulated_gae, pack(inputs, [7, 0, 30, 1]), gamma=0.9, lam=0.8)
    inputs["rewards"] = inputs["rewards"].T.contiguous().T
    inputs["quantiles"] = inputs["quantiles"].transpose(0, 1).contiguous().transpose(0, 1)
    assert_is_reference(emulated_gae, inputs, gamma=0.9, lam=0.8)


@pytest.mark.parametrize("mode", ["carry", "zero"])
def test_garbage_at_masked_tokens_stays_there(emulated_gae, mode):
    inputs = make_scan(5, 30, 4)
    clean, _ = emulated_gae(**inputs, gamma=0.9, lam=0.9, mask_mode=mode)
    inputs["rewards"] = inputs["rewards"].masked_fill(~inputs["mask"], float("nan"))
    inputs["quantiles"] = inputs["quantiles"].masked_fill(~inputs["mask"].unsqueeze(-1), torch.inf)
    dirty, _ = emulated_gae(**inputs, gamma=0.9, lam=0.9, mask_mode=mode)
    assert torch.equal(dirty, clean)


def test_empty(emulated_gae):
    for shape in ((0, 5, 4), (3, 0, 4)):
        zeros = torch.zeros(shape[:2])
        for output in emulated_gae(zeros, torch.zeros(shape), zeros, gamma=0.9, lam=0.9):
            assert output.shape == shape


def test_backends_says_what_was_built():
    expected = "cuda" if HAS_MODULE else "reference"
    assert dfpo_kernels.backends()["distributional_gae"]["cuda"] == expected


@pytest.mark.skipif(not HAS_MODULE, reason="built without nvcc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_module_counts_none_and_a_launch_raises():
    assert _dispatch.CUDA_MODULE.device_count() == 0
    zeros = torch.zeros(1, 1)
    with pytest.raises(RuntimeError, match="distributional_gae: CUDA says: "):
        ROOM._launch(
            lambda args: _dispatch.CUDA_MODULE.distributional_gae(args, 0, 0),
            zeros, zeros.unsqueeze(-1), zeros, torch.ones(1), None, None, None, None, None, 0.9,
            "carry",
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    inputs = {name: None if x is None else x.cuda() for name, x in make_scan(33, 100, 48).items()}
    assert_is_reference(dfpo_kernels.distributional_gae, inputs, gamma=0.9, lam=0.8)
