"""The Triton kernel that sorts long rows of quantile_huber_loss, on the interpreter, against the
float64 reference: short rows that are said to be long, so that the interpreter is quick."""

import sys

import pytest
import torch
from tolerances import assert_near, assert_same_gradients

pytest.importorskip("triton")
if torch.cuda.is_available():
    pytest.skip("there is a GPU: test_gpu.py runs the kernels there", allow_module_level=True)

from kernels.stand_ins import triton_answers  # noqa: E402
from kernels.test_triton import broken_copy  # noqa: E402

from dfpo_kernels import quantile_huber_loss, reference  # noqa: E402
from dfpo_kernels.quantile_huber_loss import triton_kernel as huber  # noqa: E402


@pytest.fixture(autouse=True)
def every_row_is_long(monkeypatch):
    monkeypatch.setattr(huber, "LEAST_LONG", 2)


pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")  # past a row's end


def rows(shape, offset=0.0):
    count, num_quantiles, num_targets = shape
    quantiles = torch.randn(count, num_quantiles) + offset
    targets = torch.randn(count, num_targets) + offset
    # Equal numbers, and differences of exactly kappa at kappa 0.5.
    targets[0, :2], targets[0, 2] = quantiles[0, 0], quantiles[0, 1] + 0.5
    return {"quantiles": quantiles, "targets": targets}


def assert_is_reference(tensors, **options):
    own = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    twins = {name: t.double().requires_grad_() for name, t in tensors.items()}
    actual = quantile_huber_loss(**own, **options)
    expected = reference.quantile_huber_loss(**twins, **options)
    assert_near(actual, expected)
    upstream = torch.linspace(-1, 2, len(expected))
    actual.backward(upstream)
    expected.backward(upstream.double())
    assert_same_gradients(own, twins)


@pytest.mark.parametrize(
    ("shape", "kappa"),
    [((3, 33, 40), 0.05), ((3, 33, 40), 0.5), ((3, 33, 40), 0.0), ((2, 64, 8), 0.5),
     ((2, 5, 130), 0.05)],
)  # fmt: skip
def test_sorted_rows(shape, kappa):
    with triton_answers():
        assert_is_reference(rows(shape), kappa=kappa)
        taus = torch.rand(shape[1])
        own = quantile_huber_loss(**rows(shape), taus=taus, kappa=kappa, quantile_reduction="sum")
    assert own.shape == shape[:1]


@pytest.mark.parametrize("kappa", [0.05, 0.0])
def test_large_returns_keep_their_differences(kappa):
    """At 1e6 two floats lie 0.06 apart, more than kappa."""
    with triton_answers():
        assert_is_reference(rows((3, 33, 40), 1e6), kappa=kappa)


def test_rows_that_cannot_be_sorted_go_through_all_pairs():
    tensors = rows((4, 9, 12))
    tensors["targets"][1, 3] = float("inf")
    tensors["quantiles"][2, 4] = float("nan")
    tensors["targets"][3, 5] = 1e9
    tensors = {name: t.requires_grad_() for name, t in tensors.items()}
    twins = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
    with triton_answers():
        loss = quantile_huber_loss(**tensors)
        loss.sum().backward()
    expected = reference.quantile_huber_loss(**twins)
    expected.sum().backward()
    assert_near(loss[[0, 3]], expected[[0, 3]])
    assert loss[1] == float("inf") and loss[2].isnan()
    # Beside an infinity the reference has 0 times infinity for a gradient.
    rest = [0, 2, 3]
    for name, tensor in tensors.items():
        assert torch.equal(tensor.grad[rest].isnan(), twins[name].grad[rest].isnan()), name


def test_which_rows_are_sorted(monkeypatch):
    launched = []
    monkeypatch.undo()
    for name in ("quantile_huber_kernel", "quantile_huber_sorted_kernel"):
        kernel = type("Kernel", (), {"__getitem__": lambda _, grid, name=name: (
            lambda *_args, **_options: launched.append((name, grid, _options["num_warps"]))
        )})()  # fmt: skip
        monkeypatch.setattr(huber, name, kernel)

    def launch(num_quantiles, num_targets, kappa=0.05):
        shapes = ((3, num_quantiles), (3, num_targets), (num_quantiles,))
        tensors = [torch.empty(shape, device="meta") for shape in shapes]
        huber.quantile_huber_loss(*tensors, kappa, True, True, True)
        return launched.pop()

    assert launch(64, 64)[0] == launch(191, 1000)[0] == launch(1025, 200)[0]
    assert launch(64, 64)[0] == "quantile_huber_kernel"
    assert launch(200, 192) == ("quantile_huber_sorted_kernel", (3,), 4)
    assert launch(512, 200) == ("quantile_huber_sorted_kernel", (3,), 8)
    # A kappa whose reciprocal overflows is a pinball up to rounding; all pairs know that.
    assert launch(512, 512, 1e-35)[0] == "quantile_huber_kernel"
    assert launch(512, 512, 0.0)[0] == "quantile_huber_sorted_kernel"


BROKEN = {
    "equal numbers on the wrong side": ("kappa, True)\n    q = ", "kappa, False)\n    q = "),
    "last number is never looked at": ("range(0, steps_of(n))", "range(0, steps_of(n) - 1)"),
    "levels in the wrong order": ("tl.gather(tau, place, 0)", "tau"),
    "ends of rows count": ("tl.where(here, loss, 0.0)", "loss"),
    "quantiles nearer than kappa": ("over = y * (weight_below", "over = 0.5 * y * (weight_below"),
    "negative numbers in reverse": ("bits ^ 0x7FFFFFFF, bits)\n    keys", "bits, bits)\n    keys"),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] * (i > 0)) for i, name in enumerate(BROKEN)],
)
def test_a_broken_copy_is_noticed(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "broken_kernel", None)
    copy = broken_copy(huber, *BROKEN[name], tmp_path)
    copy.LEAST_LONG = 2
    with triton_answers(copy), pytest.raises(AssertionError):
        for kappa in (0.5, 0.0):
            assert_is_reference(rows((3, 33, 8)), kappa=kappa)
