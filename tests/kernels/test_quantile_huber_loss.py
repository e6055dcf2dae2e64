"""quantile_huber_loss: hand-computed numbers, every gradient, and what it is minimised by."""

import pytest
import scipy.stats
import torch
from tolerances import assert_near

from dfpo_kernels import _dispatch, quantile_huber_loss, reference

KAPPAS = [0.0, 0.05, 1.0]
# R, Q, P: one pair, fewer than a vector, one more than a vector, several vectors and a rest.
SHAPES = [(3, 1, 1), (4, 5, 3), (5, 16, 17), (3, 33, 40), (2, 64, 64), (2, 7, 130), (70, 6, 9)]


def both(lead, num_quantiles, num_targets, dtype=torch.float32, target_dtype=None):
    quantiles = torch.randn(*lead, num_quantiles).to(dtype)
    return quantiles, torch.randn(*lead, num_targets).to(target_dtype or dtype)


def loss_and_gradients(op, quantiles, targets, weights=None, target_grad=True, **parameters):
    quantiles = quantiles.detach().clone().requires_grad_()
    targets = targets.detach().clone().requires_grad_(target_grad)
    loss = op(quantiles, targets, **parameters)
    weights = torch.rand(loss.shape) if weights is None else weights
    (loss * weights.to(loss.dtype)).sum().backward()
    return loss, quantiles.grad, targets.grad, weights


def assert_is_reference(quantiles, targets, **parameters):
    loss, *grads, weights = loss_and_gradients(
        quantile_huber_loss, quantiles, targets, **parameters
    )
    double = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in parameters.items()}
    expected, *expected_grads, _ = loss_and_gradients(
        reference.quantile_huber_loss, quantiles.double(), targets.double(), weights, **double
    )
    assert loss.dtype == torch.float32
    assert_near(loss, expected, "loss")
    for grad, other, like in zip(grads, expected_grads, (quantiles, targets), strict=True):
        if other is None:
            assert grad is None
            continue
        assert grad.dtype == like.dtype
        assert_near(grad, other, "gradient")


def test_by_hand():
    # Q = 2, taus 1/4 and 3/4, kappa = 1; quantiles 0, 1; targets -1/2, 2.
    #          u = target - quantile   H(u)          weight        product
    # q = 0    -1/2, 2                 1/8, 3/2      3/4, 1/4      3/32, 12/32    mean 15/64
    # q = 1    -3/2, 1                 1, 1/2        1/4, 3/4      8/32, 12/32    mean 20/64
    # Loss: mean 35/128, sum 35/64. dH/du = clamp(u): d loss / d q is minus the mean over pairs of
    # weight * clamp(u): q = 0: -(-3/8 + 1/4) / 4 = 1/32; q = 1: -(-1/4 + 3/4) / 4 = -1/8.
    # d loss / d target: -1/2: (-3/8 - 1/4) / 4 = -5/32; 2: (1/4 + 3/4) / 4 = 1/4.
    quantiles = torch.tensor([[0.0, 1.0]], requires_grad=True)
    targets = torch.tensor([[-0.5, 2.0]], requires_grad=True)
    loss = quantile_huber_loss(quantiles, targets, kappa=1.0)
    loss.sum().backward()
    assert loss.tolist() == [35 / 128]
    assert quantiles.grad.tolist() == [[1 / 32, -1 / 8]]
    assert targets.grad.tolist() == [[-5 / 32, 1 / 4]]
    total = quantile_huber_loss(quantiles, targets, kappa=1.0, quantile_reduction="sum")
    assert total.tolist() == [35 / 64]


def test_pinball_by_hand():
    # As above with kappa = 0, H = |u|: q = 0: (3/4 * 1/2 + 1/4 * 2) / 2 = 7/16;
    # q = 1: (1/4 * 3/2 + 3/4 * 1) / 2 = 9/16. Mean 1/2.
    loss = quantile_huber_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[-0.5, 2.0]]), kappa=0.0)
    assert loss.tolist() == [0.5]


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_value_and_every_gradient(shape, kappa, reduction):
    rows, *sizes = shape
    assert_is_reference(*both((rows,), *sizes), kappa=kappa, quantile_reduction=reduction)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_every_cpu_variant(kappa, variant):
    for rows, *sizes in SHAPES:
        assert_is_reference(*both((rows,), *sizes), kappa=kappa)


# Long rows are sorted, from 512 targets on, and from 1024 where targets have a gradient.
LONG_SHAPES = [(3, 70, 600), (2, 513, 512), (2, 1025, 1040)]


@pytest.mark.parametrize("kappa", KAPPAS)
@pytest.mark.parametrize("kind", ["random", "ties", "sorted", "wide"])
def test_long_rows(kappa, kind, variant):
    for rows, *sizes in LONG_SHAPES:
        quantiles, targets = both((rows,), *sizes)
        if kind == "ties":
            # Many differences of exactly 0 and +-kappa.
            quantiles, targets = ((x * 2).round() * (kappa or 1.0) for x in (quantiles, targets))
        elif kind == "sorted":
            quantiles, targets = (x.sort(-1).values for x in (quantiles, targets))
        elif kind == "wide":
            # So wide against kappa that differences of running sums would lose it.
            quantiles, targets = quantiles * 1e7, targets * 1e7
        assert_is_reference(quantiles, targets, kappa=kappa)
        assert_is_reference(quantiles, targets, kappa=kappa, target_grad=False)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_long_rows_that_are_not_finite(number):
    quantiles, targets = both((3,), 20, 600)
    targets[1, 5] = number
    loss, expected = (
        f(quantiles, targets) for f in (quantile_huber_loss, reference.quantile_huber_loss)
    )
    torch.testing.assert_close(loss, expected, equal_nan=True)


@pytest.mark.parametrize("kappa", [1e-38, 1e-20, 1e4, 1e30])
def test_extreme_thresholds(kappa):
    loss, grad, *_ = loss_and_gradients(quantile_huber_loss, *both((3,), 6, 6), kappa=kappa)
    assert loss.isfinite().all() and grad.isfinite().all()
    pinball = quantile_huber_loss(*both((3,), 6, 6), kappa=0.0)
    assert pinball.isfinite().all()


def test_small_thresholds_tend_to_the_pinball_loss():
    quantiles, targets = both((5,), 9, 11)
    pinball = quantile_huber_loss(quantiles, targets, kappa=0.0)
    for kappa in (1e-3, 1e-6, 1e-20, 1e-38):
        near = quantile_huber_loss(quantiles, targets, kappa=kappa)
        torch.testing.assert_close(near, pinball, atol=kappa, rtol=1e-5)


@pytest.mark.parametrize("kappa", KAPPAS)
def test_ties_and_order(kappa):
    # Quantised numbers, so that many differences are exactly 0 or +-kappa; no order anywhere.
    quantiles = torch.randint(-3, 4, (6, 19)) * (kappa or 1.0)
    targets = torch.randint(-3, 4, (6, 23)) * (kappa or 1.0)
    assert_is_reference(quantiles.float(), targets.float(), kappa=kappa)


@pytest.mark.parametrize("num_quantiles", [3, 20])
def test_levels_of_ones_own(num_quantiles):
    levels = torch.rand(num_quantiles)
    assert_is_reference(*both((4,), num_quantiles, 8), taus=levels, kappa=0.2)
    midpoints = (torch.arange(num_quantiles) + 0.5) / num_quantiles
    quantiles, targets = both((4,), num_quantiles, 8)
    torch.testing.assert_close(
        quantile_huber_loss(quantiles, targets, taus=midpoints),
        quantile_huber_loss(quantiles, targets),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_mix(dtype, target_dtype):
    assert_is_reference(*both((4,), 20, 33, dtype, target_dtype), kappa=0.5)


def test_float64_is_the_reference():
    quantiles, targets = both((4,), 5, 6, torch.float64)
    assert torch.equal(
        quantile_huber_loss(quantiles, targets), reference.quantile_huber_loss(quantiles, targets)
    )


@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (0,), (2, 0)])
def test_leading_shapes(lead):
    quantiles, targets = both(lead, 5, 4)
    loss, *_ = loss_and_gradients(quantile_huber_loss, quantiles, targets)
    assert loss.shape == lead
    torch.testing.assert_close(loss, reference.quantile_huber_loss(quantiles, targets))


def test_layouts_that_are_not_contiguous():
    quantiles, targets = both((3, 4), 10, 12)
    expected = quantile_huber_loss(quantiles, targets)
    strided = torch.stack([quantiles] * 2, -1)[..., 0], targets.transpose(0, 1).contiguous()
    assert torch.equal(quantile_huber_loss(strided[0], strided[1].transpose(0, 1)), expected)
    shared = targets[:1, :1].expand(3, 4, 12)
    torch.testing.assert_close(
        quantile_huber_loss(quantiles, shared), quantile_huber_loss(quantiles, shared.contiguous())
    )


@pytest.mark.parametrize("kappa", [0.0, 0.05])
@pytest.mark.parametrize("place", ["quantiles", "targets"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row(kappa, place, number):
    quantiles, targets = both((3,), 17, 18)
    (quantiles if place == "quantiles" else targets)[1, 5] = number
    loss, quantile_grad, target_grad, _ = loss_and_gradients(
        quantile_huber_loss, quantiles, targets, kappa=kappa
    )
    assert loss[[0, 2]].isfinite().all()
    assert loss[1].isnan() if number != number else loss[1] == float("inf")
    # Without a gradient of the targets the slopes are found in another way.
    _, alone, _, _ = loss_and_gradients(
        quantile_huber_loss, quantiles, targets, kappa=kappa, target_grad=False
    )
    for grad in (quantile_grad, target_grad, alone):
        assert grad[[0, 2]].isfinite().all()
        # A slope is bounded, so only a NaN reaches the gradient.
        assert grad[1].isnan().any() == (number != number)


def test_threads_change_no_bit():
    quantiles, targets = both((500,), 33, 40)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            weights = torch.ones(500)
            results.append(loss_and_gradients(quantile_huber_loss, quantiles, targets, weights))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kappa", KAPPAS)
def test_gradcheck_of_the_reference(kappa):
    quantiles, targets = both((2,), 3, 4, torch.float64)
    assert torch.autograd.gradcheck(
        lambda q, y: reference.quantile_huber_loss(q, y, kappa=kappa),
        (quantiles.requires_grad_(), targets.requires_grad_()),
    )


def test_opcheck():
    quantiles, targets = both((3,), 4, 5)
    levels = torch.rand(4)
    for wants in ((True, True), (True, False), (False, False)):
        quantiles.requires_grad_(wants[0])
        targets.requires_grad_(wants[1])
        torch.library.opcheck(
            torch.ops.dfpo.quantile_huber_loss.default,
            (quantiles, targets, levels, _dispatch.number(0.05), True, *wants),
        )


def test_compiles_whole():
    quantiles, targets = both((3,), 7, 5)
    compiled = torch.compile(quantile_huber_loss, fullgraph=True, backend="aot_eager")
    actual = loss_and_gradients(compiled, quantiles, targets, torch.ones(3))
    expected = loss_and_gradients(quantile_huber_loss, quantiles, targets, torch.ones(3))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_minimised_by_the_quantiles_of_the_targets():
    # Gradient descent on the pinball loss ends at the quantiles of a skewed distribution, which
    # here is given by 4000 equally likely numbers: its own quantiles at midpoints.
    levels = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    samples = torch.from_numpy(scipy.stats.gamma(2.0).ppf(levels.numpy())).float()
    expected = torch.from_numpy(scipy.stats.gamma(2.0).ppf([0.1, 0.3, 0.5, 0.7, 0.9]))
    for kappa, tolerance in ((0.0, 0.01), (0.05, 0.02)):
        quantiles = torch.full((1, 5), 1.0, requires_grad=True)
        for step in range(600):
            loss = quantile_huber_loss(quantiles, samples.expand(1, 4000), kappa=kappa)
            (grad,) = torch.autograd.grad(loss, quantiles)
            with torch.no_grad():
                quantiles -= 30.0 / (1 + step / 20) * grad
        torch.testing.assert_close(quantiles[0].double(), expected, atol=tolerance, rtol=0)


BAD = [
    ("quantiles", {"quantiles": [1.0]}, TypeError, "got list, must be a torch.Tensor"),
    ("quantiles", {"quantiles": torch.ones(2, 3).long()}, TypeError, "dtype torch.int64"),
    ("quantiles", {"quantiles": torch.tensor(1.0)}, ValueError, r"shape \[\], must be \[..., Q\]"),
    ("quantiles", {"quantiles": torch.ones(2, 0)}, ValueError, "Q = 0, must have at least one"),
    ("targets", {"targets": torch.ones(2, 0)}, ValueError, "P = 0, must have at least one"),
    ("targets", {"targets": torch.ones(3, 4)}, ValueError, r"shape \[3, 4\], must be \[2, 4\]"),
    ("targets", {"targets": torch.ones(2, 4, device="meta")}, ValueError, "on device meta"),
    ("taus", {"taus": torch.ones(4)}, ValueError, r"shape \[4\], must be \[3\]"),
    ("taus", {"taus": [0.1]}, TypeError, "got list"),
    ("kappa", {"kappa": -1.0}, ValueError, "is -1.0, must be a finite number"),
    ("kappa", {"kappa": float("inf")}, ValueError, "is inf"),
    ("kappa", {"kappa": "1"}, TypeError, "got str, must be a number"),
    ("quantile_reduction", {"quantile_reduction": "max"}, ValueError, "must be one of mean, sum"),
]


@pytest.mark.parametrize(("name", "change", "error", "message"), BAD)
def test_errors_name_the_argument(name, change, error, message):
    good = {"quantiles": torch.ones(2, 3), "targets": torch.ones(2, 4)}
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        quantile_huber_loss(**(good | change))


def test_no_gradient_in_levels():
    levels = torch.rand(3, requires_grad=True)
    loss = quantile_huber_loss(torch.ones(2, 3), torch.ones(2, 4), taus=levels)
    assert not loss.requires_grad
