"""Every op under torch.func, forward mode and second derivatives, against the float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jvp, vjp, vmap

import dfpo_kernels as kernels
from dfpo_kernels import FlowField
from dfpo_kernels.nn import ValueFlowHead

B, T, Q, W = 2, 3, 4, 5


def ridge(rows, dtype, generator):
    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    return FlowField(draw(*rows, W), draw(*rows, W), draw(*rows), draw(W), draw(W))


def mask_of(dtype):
    mask = torch.ones(B, T)
    mask[1, 2] = 0
    return mask.to(dtype)


def case(name, dtype):
    """(function of one tensor, that tensor): what is differentiated, all else being fixed."""
    generator = torch.Generator().manual_seed(0)
    field = ridge((B,), dtype, generator)
    values = torch.randn(B, Q, generator=generator).to(dtype)
    particles = torch.randn(B, T, Q, generator=generator).to(dtype)
    rewards, mask = torch.randn(B, T, generator=generator).to(dtype), mask_of(dtype)
    others = torch.randn(B, Q, generator=generator).to(dtype)
    scan = {"gamma": 0.9, "lam": 0.7}
    return {
        "flow_velocity": (lambda z: kernels.flow_velocity(field, z, 0.3), values),
        "integrate_flow": (lambda z: kernels.integrate_flow(field, z, steps=3), values),
        "flow_consistency_loss": (
            lambda z: kernels.flow_consistency_loss(field, z, steps=3), values,
        ),
        # kappa of the order of the differences: the quadratic part has a second derivative.
        "quantile_huber_loss": (
            lambda q: kernels.quantile_huber_loss(q, others, kappa=2.0), values,
        ),
        "distributional_gae": (
            lambda z: kernels.distributional_gae(rewards, z, mask, **scan)[0], particles,
        ),
        "lambda_mixture_targets": (
            lambda z: kernels.lambda_mixture_targets(rewards, z, mask, **scan, seed=3), particles,
        ),
    }[name]  # fmt: skip


OPS = (
    "flow_velocity", "integrate_flow", "flow_consistency_loss", "quantile_huber_loss",
    "distributional_gae", "lambda_mixture_targets",
)  # fmt: skip


def total(function):
    return lambda x: function(x).square().sum()


def dual(function, x, tangent):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent


def twice(function, x):
    """The second derivative of ordinary autograd, along all ones."""
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(total(function)(x), x, create_graph=True)
    return torch.autograd.grad(first.sum(), x)[0]


TRANSFORMS = {
    "grad": lambda f, x: grad(total(f))(x),
    "vjp": lambda f, x: vjp(f, x)[1](torch.ones_like(f(x)))[0],
    "jvp": lambda f, x: jvp(f, (x,), (torch.ones_like(x),))[1],
    "vmap": lambda f, x: vmap(f)(torch.stack([x, 2 * x])),
    "vmap of grad": lambda f, x: vmap(grad(total(f)))(torch.stack([x, 2 * x])),
    "hessian": lambda f, x: hessian(total(f))(x),
    "forward mode": lambda f, x: dual(f, x, torch.ones_like(x)),
    "twice": twice,
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_are_those_of_the_reference(op, transform):
    """float64 is the reference by definition; float32 is what kernels would have answered."""
    if (op, transform) in {("distributional_gae", "twice"), ("lambda_mixture_targets", "twice")}:
        with pytest.raises(RuntimeError, match="has no second derivative"):
            TRANSFORMS[transform](*case(op, torch.float32))
        return
    expected = TRANSFORMS[transform](*case(op, torch.float64))
    found = TRANSFORMS[transform](*case(op, torch.float32))
    scale = expected.abs().max().clamp_min(1e-3)
    torch.testing.assert_close(found.double() / scale, expected / scale, atol=2e-5, rtol=1e-4)
    assert found.abs().max() > 0


ONE = FlowField(*(torch.tensor(v) for v in ([[0.3]], [[0.7]], [0.1], [1.0], [0.5])))


def test_vmap_and_then_backward_by_hand():
    """z + offset + gain silu(bias + z); inside vmap requires_grad is False (pytorch#158610)."""
    x = torch.tensor([[[0.4]]], requires_grad=True)
    vmap(lambda z: kernels.integrate_flow(ONE, z, steps=1))(x).sum().backward()
    # d/dz silu(.7) = s (1 + .7 (1 - s)), s = sigmoid(.7) = .668188; times .7, plus 1
    assert x.grad.item() == pytest.approx(1.5764, abs=1e-4)


def test_vmap_under_compile():
    def run(x):
        return vmap(lambda z: kernels.integrate_flow(ONE, z, steps=1))(x).sum()

    x = torch.tensor([[[0.4]]], requires_grad=True)
    torch.compile(run, backend="aot_eager")(x).backward()
    assert x.grad.item() == pytest.approx(1.5764, abs=1e-4)


def test_tangents_by_hand():
    z, s, one = torch.tensor([[0.4]]), torch.tensor([0.0]), torch.ones(1, 1)
    _, along_z = jvp(lambda z: kernels.flow_velocity(ONE, z, s), (z,), (one,))
    _, along_both = jvp(lambda z, s: kernels.flow_velocity(ONE, z, s), (z, s), (one, torch.ones(1)))
    # .7 silu'(.7) = .57637. One unit of flow time moves the argument by .5, half of z's.
    assert along_z.item() == pytest.approx(0.57637, abs=1e-4)
    assert along_both.item() == pytest.approx(1.5 * 0.57637, abs=1e-4)


def test_second_derivatives_by_hand():
    # u = 1 - q, tau = .5: d2/dq2 of .5 u^2 / (2 kappa) is .5 at kappa 1.
    q = torch.tensor([[0.5]], requires_grad=True)
    loss = kernels.quantile_huber_loss(q, torch.ones(1, 1), kappa=1.0)
    (first,) = torch.autograd.grad(loss.sum(), q, create_graph=True)
    assert torch.autograd.grad(first.sum(), q)[0].item() == pytest.approx(0.5)


def test_a_masked_batch_still_reaches_every_parameter():
    head = ValueFlowHead(6, num_quantiles=4, width=3)
    for most in (None, 4):
        head.zero_grad()
        hidden = torch.full((2, 3, 6), torch.nan)
        targets = torch.full((2, 3, 4), torch.nan)
        loss, _ = head.loss(hidden, targets, torch.zeros(2, 3), most_tokens=most)
        loss.backward()
        assert loss.item() == 0
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None and not parameter.grad.any(), (most, name)


@pytest.mark.parametrize("weight_mode", ["none", "inverse", "vf"])
def test_masked_tokens_may_hold_anything(weight_mode):
    """Fewer tokens than places, NaN wherever the mask is 0: the loss of the counted ones alone."""
    torch.manual_seed(0)
    head = ValueFlowHead(6, num_quantiles=4, width=3, weight_mode=weight_mode)
    hidden, targets, spread = torch.randn(4, 6), torch.rand(4, 4), torch.rand(4)
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0])
    expected, _ = head.loss(
        hidden[[0, 2]], targets[[0, 2]], torch.ones(2), spread=spread[[0, 2]],
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    for part in (hidden, targets, spread):
        part[mask == 0] = torch.nan
    loss, _ = head.loss(
        hidden, targets, mask, spread=spread, generator=torch.Generator().manual_seed(1)
    )
    torch.testing.assert_close(loss, expected)
    full, _ = head.loss(hidden, targets, mask, spread=spread, most_tokens=4)
    full.backward()
    assert full.isfinite() and all(p.grad.isfinite().all() for p in head.parameters())


def test_meta_device_and_back():
    built = ValueFlowHead(6, num_quantiles=8, width=3)
    head = ValueFlowHead(6, num_quantiles=8, width=3).to("meta")
    assert head.base.is_meta and head.z_weight.is_meta
    head.to_empty(device="cpu")
    head.load_state_dict(built.state_dict())
    hidden = torch.randn(2, 6)
    torch.testing.assert_close(head(hidden), built(hidden))
    head.base.fill_(7.0)
    head.reset_parameters()
    assert torch.equal(head.base, built.base)


def test_precision_comes_back():
    head = ValueFlowHead(6, num_quantiles=8, width=3)
    exact = head.base.clone()
    head.bfloat16()
    assert head.base.dtype == torch.bfloat16
    assert torch.equal(head.float().base, exact)


@pytest.mark.parametrize("dynamic", [None, True])
def test_settings_that_change_from_call_to_call_compile_once(dynamic):
    """Schedules of gamma, lam, kappa and the end of the flow (pytorch#149406)."""
    values, targets = torch.rand(2, 3, 4), torch.rand(2, 3, 4)
    mask, field = torch.ones(2, 3), ridge((2,), torch.float32, torch.Generator().manual_seed(0))

    def run(gamma, lam, kappa, end):
        advantages, _ = kernels.distributional_gae(
            targets[..., 0], values, mask, gamma=gamma, lam=lam
        )
        loss = kernels.quantile_huber_loss(values, targets, kappa=kappa)
        moved = kernels.integrate_flow(field, values[:, 0], steps=2, end=end)
        speed = kernels.flow_velocity(field, values[:, 0], end)
        return advantages.sum() + loss.sum() + moved.sum() + speed.sum()

    compiles = []

    def backend(graph, inputs):
        compiles.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(run, backend=backend, fullgraph=True, dynamic=dynamic)
    for step in range(5):
        args = (0.9 + 0.01 * step, 0.8 + 0.02 * step, 0.05 + 0.01 * step, 0.5 + 0.1 * step)
        torch.testing.assert_close(compiled(*args), run(*args))
    # The first call's numbers are taken for constants unless told that they move.
    assert len(compiles) <= 2


def test_numpy_numbers_are_numbers():
    rewards, values, mask = torch.rand(1, 2), torch.rand(1, 2, 3), torch.ones(1, 2)
    for kind in (np.float32, np.float64):
        found, _ = kernels.distributional_gae(rewards, values, mask, gamma=kind(0.5), lam=kind(0.5))
        expected, _ = kernels.distributional_gae(rewards, values, mask, gamma=0.5, lam=0.5)
        assert torch.equal(found, expected)
    field = ridge((1,), torch.float32, torch.Generator().manual_seed(0))
    kernels.integrate_flow(field, torch.rand(1, 2), steps=np.int64(2), end=np.float32(0.5))
    with pytest.raises(TypeError, match="gamma: got bool"):
        kernels.distributional_gae(rewards, values, mask, gamma=True, lam=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_and_traces_are_constants_in_every_precision(dtype):
    values, targets = (
        torch.rand(2, 4, dtype=dtype, requires_grad=True),
        torch.rand(2, 3, dtype=dtype),
    )
    taus = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=dtype, requires_grad=True)
    kernels.quantile_huber_loss(values, targets, taus=taus).sum().backward()
    assert taus.grad is None
    lam = torch.full((2,), 0.5, dtype=dtype, requires_grad=True)
    tokens = torch.rand(2, 3, 4, dtype=dtype, requires_grad=True)
    kernels.distributional_gae(
        torch.rand(2, 3, dtype=dtype), tokens, torch.ones(2, 3), gamma=1.0, lam=lam
    )[0].sum().backward()
    assert lam.grad is None and tokens.grad is not None


def test_returns_far_from_zero_keep_their_differences():
    """The loss of values and targets at 1e6 is that of the same differences at 0."""
    base = torch.tensor([[0.0, 0.25, 0.5, 0.75]])
    near = kernels.quantile_huber_loss(base, base.flip(-1) + 0.25, kappa=0.5)
    far = kernels.quantile_huber_loss(base + 2**20, base.flip(-1) + 0.25 + 2**20, kappa=0.5)
    torch.testing.assert_close(far, near)  # these numbers are exact at 2^20 in float32
