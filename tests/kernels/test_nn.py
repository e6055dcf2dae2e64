"""The value-flow head: start, losses by hand, and whether it learns the distribution of returns."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from dfpo_kernels import FlowField, integrate_flow
from dfpo_kernels.nn import PathTargets, ValueFlowCoefs, ValueFlowHead, base_grid
from dfpo_kernels.value_flow import losses
from dfpo_kernels.value_flow.mean import move_to_mean

D, Q = 8, 16
HALF = {"return_mean": 0.5, "return_scale": 0.5, "return_range": (0.0, 1.0)}
# The literal preset of the summaries: one field, one Euler step, shared noise, tail means.
LITERAL = {
    "channels": 1, "linear_mean": False, "readout": "one_step", "coupling": "shared_noise",
    "risk_form": "tail_mean",
}  # fmt: skip
LITERAL_COEFS = ValueFlowCoefs(consistency=0.1, quantile=0.0, mean=0.0, mean_shift=0.05)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_base_grid_against_scipy():
    for count in (2, 5, 64):
        levels = scipy.stats.norm.ppf((np.arange(count) + 0.5) / count)
        np.testing.assert_allclose(base_grid(count), levels / levels.std(), rtol=1e-6, atol=1e-7)
    assert base_grid(1).tolist() == [0.0]


def test_starts_at_the_base_law():
    head = ValueFlowHead(D, Q, return_mean=2.0, return_scale=3.0)
    quantiles = head(torch.randn(5, D))
    # The field is nearly, not exactly, zero: its gain is drawn at 1e-2.
    torch.testing.assert_close(quantiles, (2 + 3 * base_grid(Q)).expand(5, Q), atol=0.3, rtol=0)
    assert quantiles.mean().item() == pytest.approx(2.0, abs=0.1)


def test_trunk_has_a_gradient_at_the_first_step():
    head = ValueFlowHead(D, Q, **HALF)
    hidden = torch.randn(5, D, requires_grad=True)
    loss, terms = head.loss(hidden, torch.rand(5, Q), torch.ones(5))
    loss.backward()
    assert hidden.grad.abs().sum() > 0
    assert set(terms) == {"anchor", "consistency", "quantile", "mean", "risk", "tail_shape"}
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_quantiles_are_sorted_and_in_range():
    head = ValueFlowHead(D, Q, **HALF)
    torch.nn.init.normal_(head.gain.weight, std=2.0)
    for quantiles in (head(torch.randn(3, 4, D)), head.one_step(torch.randn(3, 4, D))):
        assert quantiles.shape == (3, 4, Q)
        assert (quantiles.diff(dim=-1) >= 0).all()
        assert quantiles.min() >= 0 and quantiles.max() <= 1


def test_masked_rows_count_for_nothing():
    head = ValueFlowHead(D, Q, **HALF)
    hidden, targets = torch.randn(4, D), torch.rand(4, Q)
    mask = torch.tensor([1, 0, 1, 0])
    broken = targets.clone()
    broken[1], broken[3] = float("nan"), float("inf")
    losses_ = [
        head.loss(h, y, m, generator=torch.Generator().manual_seed(1))[0].item()
        for h, y, m in (
            (hidden, broken, mask),
            (hidden[mask.bool()], targets[mask.bool()], torch.ones(2)),
        )
    ]
    assert losses_[0] == losses_[1]
    assert head.loss(hidden, targets, torch.zeros(4))[0].item() == 0.0


@pytest.mark.parametrize("more", [0, 3])
def test_a_known_number_of_tokens_changes_nothing(more):
    """Whatever is left over repeats a token and counts nothing, in the loss, in each term and in
    every gradient; what lies at masked tokens is not read."""
    head = ValueFlowHead(D, Q, **HALF, weight_mode="inverse", coupling="shared_noise")
    # In shared noise the flow time is all that is drawn, one a token.
    mask = torch.tensor([[False, True, True], [True, False, True]])
    inputs = [torch.randn(2, 3, D), torch.rand(2, 3, Q), torch.randn(2, 3, Q), torch.rand(2, 3)]
    for tensor in inputs:
        tensor[~mask] = float("nan")
    path = PathTargets(
        FlowField(torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.randn(2, 3),
                  torch.randn(4), torch.randn(4)),
        torch.rand(2, 3), torch.rand(2, 3), torch.tensor([[1, 1, 0], [1, 1, 1]]),
    )  # fmt: skip
    found = []
    for most in (None, 4 + more):
        head.zero_grad()
        hidden = inputs[0].clone().requires_grad_()
        loss, terms = head.loss(
            hidden, inputs[1], mask, coefs=ValueFlowCoefs(path=1.0), base=inputs[2],
            spread=inputs[3], path=path, generator=torch.Generator().manual_seed(1),
            most_tokens=most,
        )  # fmt: skip
        loss.backward()
        gradients = [hidden.grad, *(p.grad for p in head.parameters())]
        found.append([loss, *terms.values(), *gradients])
        assert hidden.grad[~mask].abs().sum() == 0 and loss.isfinite()
    assert len(terms) == 7
    for own, plain in zip(*found, strict=True):
        torch.testing.assert_close(own, plain, atol=1e-6, rtol=1e-5)


def test_a_known_number_of_tokens_without_any():
    head = ValueFlowHead(D, Q, **HALF)
    loss, terms = head.loss(torch.randn(4, D), torch.rand(4, Q), torch.zeros(4), most_tokens=2)
    loss.backward()
    assert loss.item() == 0 and all(term.item() == 0 for term in terms.values())


def test_extremes_stay_finite():
    """|z| = 8, spread 0, targets on the bounds."""
    head = ValueFlowHead(D, Q, weight_mode="vf")
    targets = torch.tensor([[8.0], [-8.0], [0.0]]).expand(3, Q)
    loss, _ = head.loss(torch.randn(3, D), targets, torch.ones(3), spread=torch.zeros(3))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_conditional_value_risk_by_hand():
    # Q 4, tail .5: k = 2, a = .5. q sorted 0 1 2 3, nu = q_2 = 1, upper nu = q_3 = 2.
    # y = (-1, 5): RU = mean(1 - relu(2)/.5, 1 - 0) = mean(-3, 1) = -1
    # RU' = mean(2 + 0, 2 + relu(3)/.5) = mean(2, 8) = 5
    # loss = (mean(0, 1) + 1)^2 + (mean(2, 3) - 5)^2 = 2.25 + 6.25
    q = torch.tensor([[0.0, 1.0, 2.0, 3.0]], requires_grad=True)
    y = torch.tensor([[-1.0, 5.0]])
    loss = losses.conditional_value_risk_loss(q, y, 0.5)
    assert loss.item() == pytest.approx(8.5)
    loss.sum().backward()
    # d/dq of (mean - c)^2 = (mean - c): lower 1.5 for q = 0 and 1, upper -2.5 for 2 and 3
    assert q.grad[0].tolist() == pytest.approx([1.5, 1.5, -2.5, -2.5])
    # contraction 1 replaces the lower target by the mean 1.5: (.5 - 1.5)^2 + 6.25
    assert losses.conditional_value_risk_loss(q, y, 0.5, 1.0).item() == pytest.approx(7.25)


def test_value_risk_is_unbiased_for_single_visits():
    """Averaged over one-sample targets RU is the CVaR, where the tail mean is the sample itself."""
    distribution = torch.randn(200_000)
    grid = torch.special.ndtri((torch.arange(64) + 0.5) / 64)
    k = math.ceil(0.1 * 64)
    nu = grid[k - 1]
    ru = (nu - (nu - distribution).relu() / (k / 64)).mean().item()
    # CVaR of N(0, 1) at level a with threshold Phi^-1(a'): here a = 7/64, nu the midpoint 6.5/64.
    level = 6.5 / 64
    cvar = nu.item() - (nu.item() * level + scipy.stats.norm.pdf(scipy.stats.norm.ppf(level))) / (
        k / 64
    )
    assert ru == pytest.approx(cvar, abs=0.02)


def test_tail_terms_by_hand():
    q = torch.tensor([[0.0, 2.0, 4.0, 6.0]])
    y = torch.tensor([[1.0, 1.0, 3.0, 9.0]])
    # tail .5: lower means 1 and 1, upper 5 and 6 -> 0 + 1
    assert losses.tail_mean_loss(q, y, 0.5).item() == pytest.approx(1.0)
    # variances: lower 1 and 0 -> relu(1); upper 1 and 9 -> relu(8)
    assert losses.tail_shape_loss(q, y, 0.5, 0.0).item() == pytest.approx(9.0)
    # mean y 3.5, mean q 3
    assert losses.mean_shift_loss(q, y).item() == pytest.approx(0.5)
    assert losses.mean_shift_loss(y, q).item() == 0.0
    assert losses.token_mean_loss(q, y).item() == pytest.approx(0.25)


def test_curvature_by_hand():
    # tail .5 of 6: lower 0 1 4 -> second difference 2; upper 5 8 9 -> -2; both are penalised.
    q = torch.tensor([[0.0, 1.0, 4.0, 5.0, 8.0, 9.0]])
    flat = losses.tail_shape_loss(q, q, 0.5, 0.0).item()
    assert losses.tail_shape_loss(q, q, 0.5, 0.25).item() - flat == pytest.approx(0.25 * 4)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_path_runs_from_the_base_to_the_shifted_return(gamma):
    """z_0 = eps and z_1 = r + gamma X', for random r; X' the later state's own flow."""
    head = ValueFlowHead(D, Q)
    rows, width = 6, 5
    field = FlowField(
        torch.randn(rows, width), torch.randn(rows, width), torch.randn(rows),
        torch.randn(width), torch.randn(width),
    )  # fmt: skip
    eps, rewards = torch.randn(rows, Q), torch.randn(rows)
    path = PathTargets(field, rewards, torch.full((rows,), gamma), torch.ones(rows))
    start, _ = head.path_point(eps, torch.zeros(rows), path)
    end, _ = head.path_point(eps, torch.ones(rows), path)
    torch.testing.assert_close(start, eps, atol=1e-5, rtol=1e-5)
    later = integrate_flow(field, eps, steps=4)
    torch.testing.assert_close(end, rewards.unsqueeze(-1) + gamma * later, atol=1e-4, rtol=1e-4)


def test_path_velocity_is_the_derivative_of_the_path():
    """For a field without curvature (gain 0) the path is exact and so is its derivative."""
    head = ValueFlowHead(D, Q)
    rows = 4
    zeros = torch.zeros(rows, 3)
    field = FlowField(zeros, zeros, torch.randn(rows), torch.ones(3), torch.ones(3))
    path = PathTargets(field, torch.randn(rows), torch.full((rows,), 0.7), torch.ones(rows))
    eps, u, h = torch.randn(rows, Q), torch.full((rows,), 0.4), 1e-2
    ahead, _ = head.path_point(eps, u + h, path)
    behind, _ = head.path_point(eps, u - h, path)
    _, velocity = head.path_point(eps, u, path)
    torch.testing.assert_close((ahead - behind) / (2 * h), velocity, atol=1e-3, rtol=1e-3)


def train(head, sample, updates=1200, visits=48, learning_rate=2e-3, coefs=None):
    """Fits ``head`` to ``sample(visits) -> hidden [visits, D], targets [visits, Q or 1]``."""
    optimizer = torch.optim.Adam(head.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, updates)
    for _ in range(updates):
        hidden, targets = sample(visits)
        targets = targets.expand(-1, head.num_quantiles)
        base = torch.randn(visits, head.num_quantiles)
        loss, _ = head.loss(hidden, targets, torch.ones(visits), coefs=coefs, base=base)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def bernoulli(visits):
    return torch.zeros(visits, D), (torch.rand(visits, 1) < 0.3).float()


# Returns are Bernoulli(.3): mean .3, standard deviation sqrt(.21) = .458.
@pytest.mark.long
def test_terminal_distribution_keeps_its_spread():
    head = ValueFlowHead(D, 64, **HALF)
    train(head, bernoulli)
    for quantiles in (head(torch.zeros(1, D)), head.one_step(torch.zeros(1, D))):
        assert quantiles.mean().item() == pytest.approx(0.3, abs=0.05)
        assert quantiles.std().item() >= 0.75 * 0.458


@pytest.mark.long
def test_literal_preset_collapses_to_a_scalar():
    """One Euler step of the flow-matching field is the mean: the spread is gone (documented)."""
    head = ValueFlowHead(D, 64, **HALF, **LITERAL)
    train(head, bernoulli, coefs=LITERAL_COEFS)
    base = torch.randn(64)
    quantiles = head.quantiles(*head.fields(torch.zeros(1, D)), base)
    assert quantiles.std().item() <= 0.05
    assert quantiles.mean().item() == pytest.approx(0.3, abs=0.1)


def mixture(*shape):
    """The second state's return: .75 with chance .3, else .25, with a spread of .05."""
    high = torch.rand(shape) < 0.3
    return torch.where(high, 0.75, 0.25) + 0.05 * torch.randn(shape)


@pytest.mark.long
def test_laws_of_a_chain_are_recovered():
    """Two states; the first gives reward .05 and, at discount .9, the second, whose values it is
    bootstrapped from. Sorted pairing leaves so little curvature that one step is enough."""
    states = torch.randn(2, D)
    head = ValueFlowHead(D, 32, steps=16, **HALF)

    def sample(visits):
        half = visits // 2
        with torch.no_grad():
            later = head(states[1:]).expand(half, -1)
        targets = torch.cat([0.05 + 0.9 * later, mixture(half, 32)])
        return states.repeat_interleave(half, 0), targets

    train(head, sample, updates=1000, learning_rate=4e-3)
    second = mixture(100_000).numpy()
    for readout in (head, head.one_step):
        found = readout(states).detach().numpy()
        for quantiles, distribution in zip(found, (0.05 + 0.9 * second, second), strict=True):
            assert scipy.stats.wasserstein_distance(quantiles, distribution) < 0.05


def test_a_distribution_moves_to_its_mean_by_hand():
    q = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert move_to_mean(q, torch.tensor(1.0)).tolist() == [-0.5, 0.5, 1.5, 2.5]
    # Within [0, 1], of (-1, 0, 1, 2): as it is (0, 0, 1, 1); a fifth more than 1 on it is
    # (.2, 1, 1, 1), mean .8; half on it (0, .5, 1, 1), mean .625.
    q, bounds = q - 1, (0.0, 1.0)
    for mean, expected in (
        (0.5, [0, 0, 1, 1]), (0.8, [0.2, 1, 1, 1]), (0.625, [0, 0.5, 1, 1]),
        (-3.0, [0, 0, 0, 0]), (1.0, [1, 1, 1, 1]), (7.0, [1, 1, 1, 1]),
    ):  # fmt: skip
        moved = move_to_mean(q, torch.tensor(mean), bounds)
        torch.testing.assert_close(
            moved, torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0
        )


def test_moved_laws_have_their_mean_and_order_and_gradients():
    bounds, q = (-1.0, 1.0), 3 * torch.randn(50, 7)
    mean = torch.linspace(-1, 1, 50)
    moved = move_to_mean(q, mean, bounds)
    torch.testing.assert_close(moved.mean(-1), mean, atol=1e-6, rtol=0)
    for scale in (
        1,
        100,
        10_000,
    ):  # what rounding may carry over a bound grows with it
        wide = move_to_mean(scale * q, mean, bounds)
        assert wide.min() >= -1 and wide.max() <= 1
    ordered = move_to_mean(q.sort(-1).values, mean, bounds)
    torch.testing.assert_close(ordered, moved.sort(-1).values, atol=1e-5, rtol=0)
    inputs = q[5:9].double().requires_grad_(), mean[5:9].double().requires_grad_()
    for known in (None, bounds):
        assert torch.autograd.gradcheck(lambda *x, known=known: move_to_mean(*x, known), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_laws_in_half_precision_move_as_in_float32(dtype):
    """Unlike their own rounding, 2^-8 of a value of 10 or 2^-8 of the range, nothing is lost."""
    q, mean, bounds = (10 * torch.randn(50, 33)).to(dtype), torch.rand(50).to(dtype), (0.0, 1.0)
    moved = move_to_mean(q, mean, bounds)
    assert moved.dtype == dtype and moved.min() >= 0 and moved.max() <= 1
    full = move_to_mean(q.float(), mean.float(), bounds)
    torch.testing.assert_close(moved.float(), full, atol=2**-8, rtol=0)
    torch.testing.assert_close(full.mean(-1), mean.float(), atol=1e-5, rtol=0)


def test_heads_with_and_without_a_linear_mean_do_not_load_each_other():
    """Where D = width their weights have the same shapes, and other meanings."""
    linear, joint = (ValueFlowHead(8, Q, 8, channels=1, linear_mean=x) for x in (True, False))
    for ours, theirs in ((linear, joint), (joint, linear)):
        with pytest.raises(RuntimeError, match="(mean|offset).weight"):
            ours.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("target_mean", torch.zeros(5, 1)),  # would broadcast to pairs of tokens
        ("target_mean", torch.zeros(5, dtype=torch.int64)),
        ("spread", torch.zeros(5, Q)),
        ("base", torch.zeros(Q)),
    ],
)
def test_what_goes_with_a_token_has_the_masks_shape(name, value):
    head = ValueFlowHead(D, Q)
    with pytest.raises((TypeError, ValueError), match=f"^{name}: has"):
        head.loss(torch.randn(5, D), torch.rand(5, Q), torch.ones(5), **{name: value})


def test_the_linear_mean_learns_the_mean_and_nothing_else_reaches_the_trunk():
    """The gradient into the hidden states is that of (W h + b - mean y)^2, by hand."""
    head = ValueFlowHead(D, Q, **HALF)
    hidden, targets = torch.randn(5, D, requires_grad=True), torch.rand(5, Q)
    loss, terms = head.loss(hidden, targets, torch.ones(5))
    loss.backward()
    error = hidden @ head.mean.weight[0] + head.mean.bias - (2 * targets - 1).mean(-1)
    assert terms["mean"].item() == pytest.approx(error.square().mean().item(), rel=1e-5)
    by_hand = 2 * error.unsqueeze(-1) * head.mean.weight / 5
    torch.testing.assert_close(hidden.grad, by_hand, atol=1e-7, rtol=1e-4)
    first, distribution = head.apart(head.parameters())
    assert {id(p) for p in first} == {id(p) for p in head.mean.parameters()}
    assert all(p.grad.abs().sum() > 0 for p in distribution)
    joint = ValueFlowHead(D, Q, linear_mean=False)
    assert [len(part) for part in joint.apart(joint.parameters())] == [
        len(list(joint.parameters()))
    ]


def test_the_linear_mean_prefers_a_given_mean():
    head = ValueFlowHead(D, Q, **HALF)
    inputs = torch.randn(3, D), torch.rand(3, Q), torch.ones(3)
    _, terms = head.loss(*inputs, target_mean=torch.tensor([0.5, 2.0, -7.0]))
    predicted = head.mean(inputs[0]).squeeze(-1)
    # In flow units .5, 1 and 0 of the range [0, 1] are 0, 1 and -1.
    error = predicted - torch.tensor([0.0, 1.0, -1.0])
    assert terms["mean"].item() == pytest.approx(error.square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("bounds", [None, (0.0, 1.0)])
def test_every_readout_has_the_linear_mean_as_its_mean(bounds):
    head = ValueFlowHead(D, Q, return_mean=0.5, return_scale=0.5, return_range=bounds)
    torch.nn.init.normal_(head.gain.weight, std=0.3)
    torch.nn.init.normal_(head.mean.weight, std=0.2)
    hidden = torch.randn(40, D)
    mean = 0.5 + 0.5 * head.mean(hidden).squeeze(-1)
    mean = mean if bounds is None else mean.clamp(*bounds)
    for quantiles in (head(hidden), head.one_step(hidden)):
        torch.testing.assert_close(quantiles.mean(-1), mean, atol=1e-5, rtol=1e-5)


def test_a_linear_mean_needs_its_term():
    with pytest.raises(ValueError, match="mean"):
        ValueFlowHead(D, Q).loss(
            torch.randn(2, D), torch.rand(2, Q), torch.ones(2), coefs=ValueFlowCoefs(mean=0.0)
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_quantiles": 0}, "num_quantiles"),
        ({"channels": 3}, "channels"),
        ({"readout": "two_step"}, "readout"),
        ({"coupling": "none"}, "coupling"),
        ({"tail": 0.7}, "tail"),
        ({"return_range": (1.0, 0.0)}, "return_range"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ValueFlowHead(D, **arguments)


def test_consistency_needs_the_anchor():
    with pytest.raises(ValueError, match="consistency"):
        ValueFlowCoefs(anchor=0.0)


@pytest.mark.parametrize(
    ("head", "coefs", "name"),
    [
        ({}, ValueFlowCoefs(path=1.0), "path"),
        ({"weight_mode": "vf"}, None, "spread"),
        ({"coupling": "shared_noise"}, None, "base"),
    ],
)
def test_missing_inputs_are_named(head, coefs, name):
    module = ValueFlowHead(D, Q, **head)
    with pytest.raises(ValueError, match=name):
        module.loss(torch.randn(2, D), torch.rand(2, Q), torch.ones(2), coefs=coefs)


@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        (((2, D + 1), (2, Q), (2,)), "hidden"),
        (((2, D), (2, Q + 1), (2,)), "target_quantiles"),
        (((2, D), (2, Q), (3,)), "hidden"),
        (((2, D), (2,), (2,)), "target_quantiles"),
    ],
)
def test_wrong_shapes_are_named(shapes, name):
    with pytest.raises(ValueError, match=f"^{name}: has shape"):
        ValueFlowHead(D, Q).loss(*(torch.rand(shape) for shape in shapes))
