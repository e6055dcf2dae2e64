"""The kernels under what PyTorch does to modules: a test for each cell of the table in
docs/kernels.md. A call without any of it is what each is compared with; that this call is right is
the business of the other tests."""

from __future__ import annotations

import copy
import io
import itertools
import os
import pickle
import re
import threading
from pathlib import Path

import pytest
import torch
from kernels.subjects import SUBJECTS, WRAPS, B, one_of_two, own_gradients
from torch.func import functional_call, grad, jvp, vmap

pytestmark = pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""),
    reason="compilers and forks under AddressSanitizer",
)
PAGE = (Path(__file__).parents[2] / "docs/kernels.md").read_text()


@pytest.fixture(autouse=True, scope="module")
def fresh_device_contexts():
    """`torch.device("meta")` remembers torch's constructors from its first use: one made while a
    compiler had put its own in their place is of no use to the tests that follow."""
    yield
    torch.utils._device._device_constructors.cache_clear()


def gradients(module, run, given):
    """The output, and the gradient of its square in the input and every parameter."""
    given = given.detach().clone().requires_grad_()
    out = run(given)
    return out, torch.autograd.grad(out.square().sum(), [given, *module.parameters()])


def same_with_gradients(module, run, given, **tolerances):
    found, expected = gradients(module, run, given), gradients(module, module, given)
    torch.testing.assert_close(found, expected, **tolerances)


def compiled(module, given):
    torch._dynamo.reset()
    run = torch.compile(module, fullgraph=True, backend="aot_eager")
    same_with_gradients(module, run, given)


def exported(module, given):
    """Any number of rows; saved and loaded again."""
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(module, (given,), dynamic_shapes=({0: rows},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    more = torch.cat([given, given + 1])
    torch.testing.assert_close(loaded(more), module(more))


def aot_inductor(module, given, folder):
    """In a process that has imported dfpo_kernels: the ops are registered from there."""
    with torch.no_grad():
        program = torch.export.export(module, (given,))
        path = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/a.pt2")
        torch.testing.assert_close(torch._inductor.aoti_load_package(path)(given), module(given))


def autocast(module, given):
    with torch.autocast("cpu", torch.bfloat16):
        found, grads = gradients(module, module, given)
    assert found.isfinite().all() and all(grad.dtype == torch.float32 for grad in grads)
    torch.testing.assert_close(found.float(), module(given), atol=0.05, rtol=0.05)


def inference_mode(module, given):
    with torch.inference_mode():
        found = module(given)
    assert found.is_inference()
    torch.testing.assert_close(found.clone(), module(given))


def deepcopy(module, given):
    twin = copy.deepcopy(module)
    expected = module(given)
    with torch.no_grad():
        next(module.parameters()).add_(1.0)
    torch.testing.assert_close(twin(given), expected)


def pickled(module, given):
    torch.testing.assert_close(pickle.loads(pickle.dumps(module))(given), module(given))


def meta_device(module, given):
    assert module(given).shape == copy.deepcopy(module).to("meta")(given.to("meta")).shape


def many_threads(module, given):
    """Calls at the same time from threads of Python; the kernels release the lock."""
    expected, found = module(given), [None] * 8

    def call(index):
        for _ in range(20):
            found[index] = module(given)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(answer, expected) for answer in found)


def fork_after_use(module, given):
    """OpenMP's threads do not survive a fork, torch's own ops wait for them too: the child sets one
    thread, as DataLoader's workers do."""
    given = given.repeat(500, 1, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    expected = module(given)
    child = os.fork()
    if not child:
        torch.set_num_threads(1)
        os._exit(0 if torch.allclose(module(given), expected, rtol=1e-4) else 1)
    torch.set_num_threads(threads)
    assert os.waitpid(child, 0)[1] == 0


def torch_func(module, given):
    """Gradients of each row apart, and a tangent beside its finite difference."""
    weights = dict(module.named_parameters())

    def loss(weights, row):
        return functional_call(module, weights, (row.unsqueeze(0),)).square().sum()

    rows = vmap(grad(loss), in_dims=(None, 0))(weights, given)
    for index in range(B):
        expected = torch.autograd.grad(loss(weights, given[index]), list(weights.values()))
        found = [row[index] for row in rows.values()]
        torch.testing.assert_close(found, list(expected), atol=1e-3, rtol=1e-4)

    module, given = module.double(), given.double()
    _, tangent = jvp(module, (given,), (torch.ones_like(given),))
    eps = 1e-6
    expected = (module(given + eps) - module(given - eps)) / (2 * eps)
    torch.testing.assert_close(tangent, expected, atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Subjects with their input, and {(wrap, subject): gradients} of two processes."""
    folder = tmp_path_factory.mktemp("two")
    torch.manual_seed(0)
    given = {name: make() for name, make in SUBJECTS.items()}
    torch.save(given, folder / "given")
    torch.multiprocessing.spawn(one_of_two, (str(folder),), nprocs=2)
    return given, torch.load(folder / "found")


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_the_mean_of_two_processes_is_that_of_all_rows(two_processes, wrap, subject):
    given, found = two_processes
    module, rows = given[subject]
    expected = own_gradients(module, rows)
    module.zero_grad()
    torch.testing.assert_close(found[wrap, subject], expected, atol=1e-5, rtol=1e-4)


FEATURES = {
    "torch.compile": compiled,
    "torch.export": exported,
    "AOTInductor": aot_inductor,
    "autocast": autocast,
    "inference_mode": inference_mode,
    "deepcopy": deepcopy,
    "pickle": pickled,
    "meta device": meta_device,
    "many threads": many_threads,
    "fork after use": fork_after_use,
    "torch.func": torch_func,
}


# Up to half a minute of a C++ compiler.
SLOW = "AOTInductor"


@pytest.mark.parametrize(
    ("feature", "subject"),
    [
        pytest.param(*cell, marks=[pytest.mark.long] * (cell[0] == SLOW))
        for cell in itertools.product(FEATURES, SUBJECTS)
    ],
)
def test_the_answer_is_that_of_a_plain_call(feature, subject, tmp_path):
    module, given = SUBJECTS[subject]()
    more = (tmp_path,) if feature == "AOTInductor" else ()
    FEATURES[feature](module, given, *more)


def test_the_page_lists_what_is_tested_here():
    table = re.search(r"^\| under \|.*?\n\n", PAGE, re.M | re.S)[0]
    rows = re.findall(r"^\| `?([\w. ]+)`? \|", table, re.M)[1:]
    assert rows == [*FEATURES, *WRAPS]
