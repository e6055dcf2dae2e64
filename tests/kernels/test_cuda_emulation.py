"""The CUDA kernels' own text, compiled for the CPU and run with every thread a fiber
(csrc/cuda/emulation.h), through the bindings and the Python code that a GPU would use: the public
functions against the float64 reference. No GPU runs here.

DFPO_EMULATION_FLAGS: more flags for the compiler; ``make sanitize-emulation`` asks for
AddressSanitizer."""

import contextlib
import os
import shutil
import subprocess
import sys

import pytest
import torch
from kernels.scans import double, make_scan, pack
from kernels.stand_ins import (
    CSRC,
    compile_emulation,
    compile_object,
    cuda_answers,
    extra_flags,
    load,
)
from tolerances import SCAN

import dfpo_kernels
from dfpo_kernels import _dispatch, reference

pytest.importorskip("pybind11")
if not shutil.which("c++"):
    pytest.skip("needs a C++ compiler", allow_module_level=True)
HAS_MODULE = _dispatch.CUDA_MODULE is not None
# Ascending, descending, shuffled.
ORDERS = ("0", "1", "7")


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    return compile_emulation(tmp_path_factory.mktemp("objects"))


@pytest.fixture(scope="module")
def emulated_module(objects, tmp_path_factory):
    return load(objects.values(), tmp_path_factory.mktemp("module"))


@pytest.fixture
def use():
    """use(module): from here on, the ops on CPU tensors run that module's kernels."""
    with contextlib.ExitStack() as stack:
        yield lambda module: stack.enter_context(cuda_answers(module))


@pytest.fixture
def emulated(use, emulated_module):
    use(emulated_module)


@pytest.fixture(params=ORDERS)
def order(request, monkeypatch):
    monkeypatch.setenv("DFPO_EMULATION_ORDER", request.param)


def assert_is_reference(op, inputs, **parameters):
    """Values, and the gradients of all that is differentiable, in the dtype of the quantiles."""
    dtype = inputs["quantiles"].dtype
    atol, rtol = SCAN[dtype]
    names = ("rewards", "quantiles", "bootstrap", "next_quantiles")
    names = [name for name in names if inputs.get(name) is not None]
    results = []
    for ops, tensors in ((dfpo_kernels, dict(inputs)), (reference, double(inputs))):
        for name in names:
            tensors[name] = tensors[name].detach().clone().requires_grad_()
        outputs = getattr(ops, op)(**tensors, **parameters)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        weights = [torch.linspace(-1, 2, out.numel()).view(out.shape).to(dtype) for out in outputs]
        weights = [weight.to(out.dtype) for weight, out in zip(weights, outputs, strict=True)]
        # Of nothing the reference has no graph.
        if outputs[0].requires_grad:
            torch.autograd.backward(outputs, weights)
        # What no output reads has no gradient in the reference.
        leaves = [tensors[name] for name in names]
        grads = [torch.zeros_like(t) if t.grad is None else t.grad for t in leaves]
        results.append([*outputs, *grads])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual.double(), expected.double(), atol=atol, rtol=rtol)


def gae(inputs, **parameters):
    assert_is_reference("distributional_gae", inputs, gamma=0.9, **parameters)


def mixture(inputs, **parameters):
    assert_is_reference("lambda_mixture_targets", inputs, gamma=0.9, seed=2**40 + 3, **parameters)


# B, T, Q: few quantiles or groups of a warp, a chunk or several.
SHAPES = [(3, 1, 1), (2, 1100, 1), (2, 90, 3), (2, 70, 31), (3, 9, 32), (2, 133, 70)]


@pytest.mark.parametrize(
    "order", [pytest.param(x, marks=[pytest.mark.long] * (x != ORDERS[-1])) for x in ORDERS],
    indirect=True,
)  # fmt: skip
@pytest.mark.parametrize("mode", ["carry", "zero", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_reference(emulated, order, shape, mode):
    inputs = make_scan(*shape)
    lams = {"lam": torch.rand(shape[0]), "target_lam": torch.rand(shape[0])}
    gae(inputs, **lams, mask_mode=mode)
    mixture(inputs, lam=0.7, mask_mode=mode)


@pytest.mark.long
def test_wide_shares_of_many_tokens(use, tmp_path):
    """As they are where there are many chunks; here of any number."""
    wide = load(compile_emulation(tmp_path, "-DDFPO_ENOUGH_BLOCKS=0").values(), tmp_path)
    assert wide.scan_plan(1, 300, False, 300, 33)[0] == 2 * 3
    use(wide)
    for shape in ((2, 2100, 1), (2, 200, 20), (2, 300, 33)):
        inputs = make_scan(*shape)
        packed = pack(inputs, [3, shape[1]])
        for mode in ("carry", "zero", "none"):
            gae(inputs, lam=0.9, target_lam=0.5, mask_mode=mode)
            mixture(packed, lam=0.9, mask_mode=mode)


@pytest.mark.long
@pytest.mark.parametrize("num_quantiles", [20, 33])
def test_long_sequences_pass_a_state_from_window_to_window(emulated, num_quantiles):
    """Three windows of 16 chunks, of 48 or 64 tokens each; and packed beside short ones."""
    inputs = make_scan(1, 2300, num_quantiles, done=0.001)
    gae(inputs, lam=0.99, target_lam=0.9)
    mixture(inputs, lam=0.99)
    packed = pack(make_scan(4, 1300, num_quantiles, done=0.001), [3, 0, 1300, 65])
    gae(packed, lam=0.99, mask_mode="zero")
    mixture(packed, lam=0.99, mask_mode="zero")


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [
        # Of one particle 1024 tokens a block where they are few, else 2048; of a warp's, 64 or 128.
        ((1, 131_072, 1), 128),
        ((8, 32_768, 1), 256),
        ((512, 4096, 1), 1024),
        ((4, 1024, 32), 64),
        ((64, 1024, 32), 512),
        ((64, 4096, 64), 4096),
        # 256 // 7 = 36 threads' shares of 4 tokens: 144 a block.
        ((2, 1000, 7), 14),
        ((0, 100, 4), 0),
        # Of nothing the bootstrap still has a gradient.
        ((3, 0, 4), 3),
    ],
)
def test_a_scan_is_spread_over_the_card(emulated_module, shape, blocks):
    count, length, num_quantiles = shape
    plan = emulated_module.scan_plan(count, length, False, count * length, num_quantiles)
    assert plan[0] == blocks
    # What blocks leave each other is little beside the 12 bytes a particle that they must move.
    assert plan[1] < 0.15 * 12 * count * length * num_quantiles + 4096


@pytest.mark.parametrize(
    ("count", "length", "scratch_bytes", "message"),
    [
        (2, 5, 0, "less scratch memory than scan_plan says"),
        (2**31, 1, 2**62, "more sequences and quantiles than one launch can take"),
        (1, 2**31 - 100, 2**62, "more tokens in a sequence than a scan can count"),
    ],
)
def test_what_a_launch_cannot_take_is_named(emulated_module, count, length, scratch_bytes, message):
    """Before any memory is touched."""
    flags, tokens = (0, 0, False, 0, 0), (0, 0, 0, 0)
    sequences = (count, length, 0, 1, 2, flags, flags)
    args = (sequences, tokens, tokens, tokens, (0, 0, 0), 0, 0, 0.9, tokens, tokens)
    with pytest.raises(RuntimeError, match=message):
        emulated_module.distributional_gae(args, 0, scratch_bytes, count * length, 0, 0)


def test_explicit_successors_and_defaults(emulated):
    for shape in ((3, 40, 2), (2, 9, 40)):
        inputs = make_scan(*shape, bootstrap=False, done=0)
        mixture(inputs, lam=torch.rand(shape[0]), rows=torch.arange(shape[0]) + 2**33)
        inputs["next_quantiles"] = torch.randn_like(inputs["quantiles"])
        for mode in ("carry", "zero", "none"):
            gae(inputs, lam=0.8, mask_mode=mode)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_flags(emulated, dtype):
    for num_quantiles in (3, 33):
        inputs = make_scan(3, 21, num_quantiles)
        inputs["quantiles"] = inputs["quantiles"].to(dtype)
        for flags in (torch.int64, torch.float32, dtype):
            inputs["mask"], inputs["done"] = inputs["mask"].to(flags), inputs["done"].to(flags)
            gae(inputs, lam=0.8)
        mixture(inputs, lam=0.8)


def test_packed_and_strided(emulated):
    for num_quantiles in (5, 33):
        inputs = make_scan(4, 30, num_quantiles)
        packed = pack(inputs, [7, 0, 30, 1])
        explicit = packed | {"bootstrap": None}
        explicit["next_quantiles"] = torch.randn_like(packed["quantiles"])
        for mode in ("carry", "zero", "none"):
            gae(packed, lam=0.8, mask_mode=mode)
            gae(explicit, lam=0.8, mask_mode=mode)
            mixture(packed, lam=0.8, mask_mode=mode)
        inputs["rewards"] = inputs["rewards"].T.contiguous().T
        inputs["quantiles"] = inputs["quantiles"].transpose(0, 1).contiguous().transpose(0, 1)
        gae(inputs, lam=0.8)
        mixture(inputs, lam=0.8)


@pytest.mark.parametrize("num_quantiles", [1, 4, 40])
def test_same_bits_as_the_cpu(emulated_module, use, num_quantiles):
    inputs = make_scan(4, 50, num_quantiles)
    parameters = {"gamma": 1.0, "lam": 0.5, "seed": 11, "rows": torch.arange(4) * 2**31}
    for mode in ("carry", "zero", "none"):
        cpu = dfpo_kernels.lambda_mixture_targets(**inputs, **parameters, mask_mode=mode)
        use(emulated_module)
        cuda = dfpo_kernels.lambda_mixture_targets(**inputs, **parameters, mask_mode=mode)
        # A single other bit is off by the difference of two random values.
        torch.testing.assert_close(cuda, cpu, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_quantiles", [4, 40])
@pytest.mark.parametrize("mode", ["carry", "zero"])
def test_garbage_at_masked_tokens_stays_there(emulated, mode, num_quantiles):
    inputs = make_scan(5, 30, num_quantiles)
    dirty = dict(inputs)
    dirty["rewards"] = inputs["rewards"].masked_fill(~inputs["mask"], float("nan"))
    dirty["quantiles"] = inputs["quantiles"].masked_fill(~inputs["mask"].unsqueeze(-1), torch.inf)
    parameters = {"gamma": 0.9, "lam": 0.9, "mask_mode": mode}
    for op, more in (("distributional_gae", {}), ("lambda_mixture_targets", {"seed": 1})):
        one, other = (getattr(dfpo_kernels, op)(**x, **parameters, **more) for x in (inputs, dirty))
        one, other = (x[0] if isinstance(x, tuple) else x for x in (one, other))
        assert torch.equal(one, other)


@pytest.mark.parametrize("num_quantiles", [1, 32])
def test_nothing_flows_across_the_end_of_an_episode(emulated, num_quantiles):
    """Not even a NaN, also between the tiles and threads of a scan."""
    inputs = make_scan(1, 700, num_quantiles, masks="ones", done=0)
    inputs["done"] = torch.zeros(1, 700, dtype=torch.bool)
    inputs["done"][0, 350] = True
    inputs["quantiles"][0, 400] = inputs["rewards"][0, 400] = float("nan")
    advantages, _ = dfpo_kernels.distributional_gae(**inputs, gamma=0.9, lam=0.9)
    targets = dfpo_kernels.lambda_mixture_targets(**inputs, gamma=0.9, lam=0.9, seed=1)
    for out in (advantages, targets):
        assert out[0, :351].isfinite().all() and out[0, 399].isnan().any()


def test_empty(emulated):
    for shape in ((0, 5, 4), (3, 0, 4), (3, 0, 40)):
        inputs = {"rewards": torch.zeros(shape[:2]), "mask": torch.zeros(shape[:2])}
        inputs |= {"quantiles": torch.zeros(shape), "bootstrap": torch.zeros(shape[0], shape[2])}
        gae(inputs, lam=0.9)
        mixture(inputs, lam=0.9)


def test_backends_says_what_was_built():
    expected = "cuda" if HAS_MODULE else "reference"
    for op in ("distributional_gae", "lambda_mixture_targets"):
        assert dfpo_kernels.backends()[op]["cuda"] == expected


@pytest.mark.skipif(not HAS_MODULE, reason="built without nvcc")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_module_counts_none_and_a_launch_raises(use):
    assert _dispatch.CUDA_MODULE.device_count() == 0
    use(_dispatch.CUDA_MODULE)
    inputs = make_scan(2, 5, 3)
    with pytest.raises(RuntimeError, match="distributional_gae: CUDA says: .*driver"):
        dfpo_kernels.distributional_gae(**inputs, gamma=0.9, lam=0.9)
    with pytest.raises(RuntimeError, match="lambda_mixture_targets: CUDA says: .*driver"):
        dfpo_kernels.lambda_mixture_targets(**inputs, gamma=0.9, lam=0.9, seed=1)


# --- broken copies --------------------------------------------------------------------------------

SCAN_H, COMPOSE_H, WALK_H = "cuda/scan.h", "cuda/compose.h", "cuda/walk.h"
CHUNKS_H = "cuda/chunks.h"
GAE_CU, MIXTURE_CU = "cuda/distributional_gae.cu", "cuda/lambda_mixture_targets.cu"
# File, text, replacement; and, of a header, the kernel that shows it, if not GAE's.
BROKEN = {
    "missing barrier before a neighbour is read": (
        COMPOSE_H, "__syncthreads();\n        if (slot >= distance)", "if (slot >= distance)",
    ),
    "missing barrier before a slot is overwritten": (
        COMPOSE_H, "[thread - distance * lanes]);\n        __syncthreads();",
        "[thread - distance * lanes]);",
    ),
    "missing barrier before the total is read": (
        COMPOSE_H, "shared[thread] = map;\n    __syncthreads();", "shared[thread] = map;",
    ),
    "missing barrier before a chunk is read": (
        SCAN_H, "load();\n        __syncthreads();", "load();",
    ),
    "missing barrier before results are written": (
        SCAN_H, "void write_results() const {\n        __syncthreads();",
        "void write_results() const {",
    ),
    "barrier that not every thread reaches": (
        COMPOSE_H,
        "if (slot >= distance) map = after(map, shared[thread - distance * lanes]);\n"
        "        __syncthreads();",
        "if (slot >= distance) {\n"
        "            map = after(map, shared[thread - distance * lanes]);\n"
        "            __syncthreads();\n        }",
    ),
    "waits for a chunk that comes later": (SCAN_H, "wait_for_flag(flag_of(i))",
                                           "wait_for_flag(flag_of(i + 1))"),
    "nobody says that a chunk is there": (
        SCAN_H, "if (!last && !ends_window) leave", "if (!last && false) leave",
    ),
    "a window does not pass its state on": (SCAN_H, "if (window > 0) {", "if (false) {"),
    "a window passes on what it began with": (
        SCAN_H, "const bool at_end = slot_ == slots_ - 1;", "const bool at_end = slot_ == 0;",
    ),
    "the last chunk of a gap is lost": (
        SCAN_H, "i < begin + each && i < end; i++", "i < begin + each && i < end - 1; i++",
    ),
    "maps of a gap the wrong way round": (
        SCAN_H, "scan_.after(chunk, earlier)", "scan_.after(earlier, chunk)",
    ),
    "neighbour off by one": (COMPOSE_H, "if (slot >= distance)", "if (slot > distance)"),
    "share off by one": (
        SCAN_H, "return (slot_ * kBatch + j) * lanes_ + lane_",
        "return (slot_ * (kBatch - 1) + j) * lanes_ + lane_",
    ),
    "last token is lost": (WALK_H, "if (position >= length)", "if (position >= length - 1)"),
    "lanes past the last particle count": (
        SCAN_H, "own_lane_ && scan_.input(k).there()", "scan_.input(k).there()",
    ),
    "masked tokens step": (WALK_H, "role = masked_role(s_.mask_mode)", "role = 0"),
    "end of an episode is missed": (WALK_H, "role |= kStop", "role |= 0"),
    "steps counted from the wrong token": (SCAN_H, "return t - first;", "return t;", MIXTURE_CU),
    "steps counted from the wrong chunk": (
        SCAN_H, "i < place.chunk : i > place.chunk", "i > place.chunk : i < place.chunk",
        MIXTURE_CU,
    ),
    "packed sequences overlap": (
        CHUNKS_H, "s.offsets[b] / c.tokens + b", "s.offsets[b] / c.tokens",
    ),
    "GAE: lam of the advantages for the targets": (
        GAE_CU, "decay_.trace * state[2]);", "decay_.advantage * state[2]);",
    ),
    "GAE: lam of the advantages for the targets between chunks": (
        GAE_CU, "flow(map.x[4], value + decay_.trace * state[2])",
        "flow(map.x[4], value + decay_.advantage * state[2])",
    ),
    "GAE backward: explicit successors get the next value's gradient too": (
        GAE_CU, "a_.explicit_successors ? 0.0f : successor;", "successor;",
    ),
    "GAE backward: a chunk forgets the gradient of its last value": (
        GAE_CU, "if (x[4] != 0.0f) state[2]", "if (false) state[2]",
    ),
    "mixture: another word of the draw": (
        MIXTURE_CU, "q % 2 ? x[1] : x[0]", "q % 2 ? x[0] : x[1]",
    ),
    "mixture backward: the bit the wrong way round": (
        MIXTURE_CU, "state[0] = token.follows ? successor : 0.0f",
        "state[0] = token.follows ? 0.0f : successor",
    ),
}  # fmt: skip


def battery():
    """A small part of the tests above that every broken copy must fail."""
    gae(make_scan(1, 1100, 33, done=0.001), lam=0.99)
    packed = pack(make_scan(3, 150, 40, done=0.05), [150, 0, 70])
    gae(packed, lam=0.95)
    for shape in ((2, 150, 20), (2, 70, 40)):
        inputs = make_scan(*shape, done=0.05)
        for mode in ("carry", "zero"):
            gae(inputs, lam=0.5, target_lam=0.95, mask_mode=mode)
            mixture(inputs, lam=0.9, mask_mode=mode)
        inputs["next_quantiles"], inputs["bootstrap"] = torch.randn(*shape), None
        gae(inputs, lam=0.95)


def test_the_battery_passes(emulated, order):
    battery()


# Compiling one takes five seconds: `make test` takes one of them, `make gpu-proof` all.
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * (i > 0)) for i, name in enumerate(BROKEN)],
)
def test_a_broken_copy_is_noticed(objects, use, tmp_path, monkeypatch, name):
    file, text, replacement, *shown_by = BROKEN[name]
    shutil.copytree(CSRC, tmp_path / "csrc")
    source = (CSRC / file).read_text()
    assert text in source
    (tmp_path / "csrc" / file).write_text(source.replace(text, replacement))
    path = file if file.endswith(".cu") else (shown_by or [GAE_CU])[0]
    broken = compile_object(tmp_path / "csrc" / path, tmp_path, "-O0")
    use(load((objects | {path: broken}).values(), tmp_path))
    for order in ORDERS:
        monkeypatch.setenv("DFPO_EMULATION_ORDER", order)
        try:
            battery()
        except (AssertionError, RuntimeError):
            return
    pytest.fail("every thread order hides it")


# --- planted errors of memory ---------------------------------------------------------------------

# File, text, replacement, what AddressSanitizer says.
PLANTED = {
    "write after the last token": (
        SCAN_H, "output.at(walk_.token(position))", "output.at(walk_.token(position) + 1)",
        "heap-buffer-overflow", "WRITE of size 4",
    ),
    "write before the first token": (
        SCAN_H, "output.at(walk_.token(position))", "output.at(walk_.token(position) - 1)",
        "heap-buffer-overflow", "WRITE of size 4",
    ),
    "read after the last token": (
        SCAN_H, "input.at(walk_.token(position))", "input.at(walk_.token(position) + 1)",
        "heap-buffer-overflow", "READ of size 4",
    ),
    "write after shared memory": (
        COMPOSE_H, "    shared[thread] = map;\n    __syncthreads();\n    *total",
        "    shared[thread + 1] = map;\n    __syncthreads();\n    *total",
        "heap-buffer-overflow", "WRITE of size",
    ),
}  # fmt: skip

# The module of these objects on one small scan for each kernel.
RUN = """
import sys
from pathlib import Path
import dfpo_kernels
from kernels.scans import make_scan
from kernels.stand_ins import cuda_answers, load
folder, *objects = map(Path, sys.argv[1:])
with cuda_answers(load(objects, folder)):
    for num_quantiles in (3, 40):
        inputs = make_scan(2, 20, num_quantiles, masks="ones", done=0)
        dfpo_kernels.distributional_gae(**inputs, gamma=0.9, lam=0.9)
print("finished")
"""


def run_alone(objects, folder):
    """In a process of its own, which AddressSanitizer ends."""
    paths = [str(CSRC.parent), str(CSRC.parent / "tests"), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-c", RUN, str(folder), *map(str, objects)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.skipif(
    not any("address" in flag for flag in extra_flags()),
    reason="only under AddressSanitizer: make sanitize-emulation",
)
@pytest.mark.parametrize("name", [None, *PLANTED])
def test_address_sanitizer_ends_a_planted_error_of_memory(objects, tmp_path, name):
    """And nothing else: the kernel as it is runs to its end."""
    if name is None:
        child = run_alone(objects.values(), tmp_path)
        assert child.returncode == 0 and "finished" in child.stdout, child.stderr
        return
    file, text, replacement, *said = PLANTED[name]
    shutil.copytree(CSRC, tmp_path / "csrc")
    source = (CSRC / file).read_text()
    assert source.count(text) == 1
    (tmp_path / "csrc" / file).write_text(source.replace(text, replacement))
    objects = objects | {GAE_CU: compile_object(tmp_path / "csrc" / GAE_CU, tmp_path, "-O1")}
    child = run_alone(objects.values(), tmp_path)
    assert child.returncode != 0 and "finished" not in child.stdout
    for words in ("ERROR: AddressSanitizer", *said):
        assert words in child.stderr, child.stderr[-2000:]
