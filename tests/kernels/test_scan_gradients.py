"""Gradients, threads, compilation and errors of both reverse scans."""

import pytest
import torch
from kernels.scans import double, make_scan, pack
from tolerances import SCAN

from dfpo_kernels import _cpu, _dispatch, distributional_gae, lambda_mixture_targets, reference

MODES = ["carry", "zero", "none"]
OPS = {
    "gae": (distributional_gae, reference.distributional_gae, {"gamma": 0.9, "lam": 0.8}),
    "gae, two lams": (
        distributional_gae,
        reference.distributional_gae,
        {"gamma": 0.9, "lam": 0.8, "target_lam": 0.95},
    ),
    "mixture": (
        lambda_mixture_targets,
        reference.lambda_mixture_targets,
        {"gamma": 0.9, "lam": 0.8, "seed": 5},
    ),
}
OP = pytest.mark.parametrize("op", list(OPS))


def outputs_and_gradients(op, inputs, parameters, weights=None):
    leaves = {
        name: x.clone().requires_grad_()
        for name, x in inputs.items()
        if isinstance(x, torch.Tensor) and x.is_floating_point() and name != "done"
    }
    outputs = op(**(inputs | leaves), **parameters)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    if weights is None:
        weights = [torch.randn_like(output) for output in outputs]
    loss = sum((x.double() * w.double()).sum() for x, w in zip(outputs, weights, strict=True))
    loss.backward()
    return outputs, weights, {name: leaf.grad for name, leaf in leaves.items()}


def assert_gradients_match(op, exact, inputs, parameters, dtype=torch.float32):
    outputs, weights, actual = outputs_and_gradients(op, inputs, parameters)
    expected_outputs, _, expected = outputs_and_gradients(
        exact, double(inputs), parameters, weights
    )
    atol, rtol = SCAN[dtype]
    for one, other in zip(outputs, expected_outputs, strict=True):
        torch.testing.assert_close(one.double(), other, atol=atol, rtol=rtol)
    for name, grad in actual.items():
        assert grad.dtype == inputs[name].dtype, name
        other = torch.zeros_like(grad).double() if expected[name] is None else expected[name]
        # A reward's gradient sums over the particles.
        scale = inputs["quantiles"].shape[-1] ** 0.5 if name == "rewards" else 1.0
        torch.testing.assert_close(
            grad.double(), other, atol=scale * atol, rtol=rtol, msg=lambda m, n=name: f"{n}: {m}"
        )


@OP
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(19, 70, 1), (3, 21, 7), (2, 18, 33), (2, 5, 130), (2, 1, 2)])
def test_every_gradient(op, mode, shape):
    function, distribution, parameters = OPS[op]
    inputs = make_scan(*shape, seed=sum(shape))
    assert_gradients_match(function, distribution, inputs, parameters | {"mask_mode": mode})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_quantiles", [1, 9])
def test_gradient_of_explicit_successors(mode, num_quantiles):
    inputs = make_scan(5, 20, num_quantiles, bootstrap=False)
    inputs["next_quantiles"] = torch.randn_like(inputs["quantiles"])
    parameters = {"gamma": 0.9, "lam": torch.rand(5).double().float(), "mask_mode": mode}
    assert_gradients_match(distributional_gae, reference.distributional_gae, inputs, parameters)


@OP
@pytest.mark.parametrize("num_quantiles", [1, 5])
def test_gradients_of_packed_sequences(op, num_quantiles):
    function, distribution, parameters = OPS[op]
    inputs = pack(make_scan(4, 30, num_quantiles), [7, 0, 30, 1])
    assert_gradients_match(function, distribution, inputs, parameters)


@OP
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_quantiles", [1, 6])
def test_gradients_have_the_dtype_of_their_input(op, dtype, num_quantiles):
    function, distribution, parameters = OPS[op]
    inputs = make_scan(4, 12, num_quantiles)
    for name in ("quantiles", "bootstrap"):
        inputs[name] = inputs[name].to(dtype)
    assert_gradients_match(function, distribution, inputs, parameters, dtype)


def test_only_one_output_used():
    function, distribution, parameters = OPS["gae, two lams"]
    for used in (0, 1):
        assert_gradients_match(
            lambda *a, use=used, **k: function(*a, **k)[use],
            lambda *a, use=used, **k: distribution(*a, **k)[use],
            make_scan(3, 15, 4),
            parameters,
        )


@OP
def test_no_gradient_at_masked_tokens_that_are_no_steps(op):
    function, _, parameters = OPS[op]
    inputs = make_scan(4, 20, 3)
    for mode in ("carry", "zero"):
        *_, grads = outputs_and_gradients(function, inputs, parameters | {"mask_mode": mode})
        assert (grads["rewards"][~inputs["mask"]] == 0).all()


@OP
@pytest.mark.parametrize("mode", MODES)
def test_gradcheck_of_the_reference(op, mode):
    _, distribution, parameters = OPS[op]
    inputs = double(make_scan(2, 5, 2))
    leaves = [inputs[name].requires_grad_() for name in ("rewards", "quantiles", "bootstrap")]

    def run(rewards, quantiles, bootstrap):
        return distribution(
            rewards, quantiles, inputs["mask"], bootstrap=bootstrap, done=inputs["done"],
            mask_mode=mode, **parameters,
        )  # fmt: skip

    assert torch.autograd.gradcheck(run, leaves)


@OP
@pytest.mark.parametrize("num_quantiles", [1, 20])
def test_threads_change_no_bit(op, num_quantiles):
    function, _, parameters = OPS[op]
    inputs = make_scan(70, 40, num_quantiles)
    threads, results = torch.get_num_threads(), []
    weights = None
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outputs, weights, grads = outputs_and_gradients(function, inputs, parameters, weights)
            results.append([*outputs, *grads.values()])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@OP
@pytest.mark.parametrize("num_quantiles", [1, 6, 40])
def test_every_cpu_variant(op, num_quantiles, variant):
    assert _cpu.variant() == variant
    function, distribution, parameters = OPS[op]
    for mode in MODES:
        inputs = make_scan(9, 37, num_quantiles)
        assert_gradients_match(function, distribution, inputs, parameters | {"mask_mode": mode})


def op_arguments(op, **changes):
    x = make_scan(3, 6, 2) | changes
    leaves = [x[name].requires_grad_() for name in ("rewards", "quantiles", "bootstrap")]
    lam, rows, gamma = torch.full((3,), 0.9), torch.arange(3), _dispatch.number(0.9)
    if op == "mixture":
        return (*leaves[:2], x["mask"], lam, rows, leaves[2], x["done"], None, gamma, 5, "carry")
    return (*leaves[:2], x["mask"], lam, None, leaves[2], x["done"], None, None, gamma, "carry")


@pytest.mark.parametrize("op", ["gae", "mixture"])
def test_opcheck(op):
    name = "lambda_mixture_targets" if op == "mixture" else "distributional_gae"
    torch.library.opcheck(getattr(torch.ops.dfpo, name).default, op_arguments(op))


@pytest.mark.parametrize("op", ["gae, two lams", "mixture"])
def test_compiles_whole(op):
    function, _, parameters = OPS[op]
    inputs = make_scan(4, 9, 3)
    compiled = torch.compile(
        lambda **tensors: function(**tensors, **parameters), fullgraph=True, backend="aot_eager"
    )
    outputs, weights, grads = outputs_and_gradients(compiled, inputs, {})
    eager_outputs, _, eager_grads = outputs_and_gradients(function, inputs, parameters, weights)
    for one, other in zip(outputs, eager_outputs, strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(grads[name], eager_grads[name]) for name in grads)


def test_seeds_do_not_recompile():
    compilations = []

    def backend(graph, _):
        compilations.append(graph)
        return graph

    inputs = make_scan(3, 8, 4)

    @torch.compile(fullgraph=True, backend=backend)
    def targets(seed):
        return lambda_mixture_targets(**inputs, gamma=0.9, lam=0.8, seed=seed)

    for seed in range(2, 22):
        eager = lambda_mixture_targets(**inputs, gamma=0.9, lam=0.8, seed=seed)
        assert torch.equal(targets(seed), eager)
    # One for the first seed, which looks like a constant, and one for all others.
    assert len(compilations) <= 2


GOOD = {
    "rewards": torch.zeros(2, 3),
    "quantiles": torch.zeros(2, 3, 4),
    "mask": torch.ones(2, 3),
    "gamma": 0.9,
    "lam": 0.9,
}
PACKED = GOOD | {
    "rewards": torch.zeros(6),
    "quantiles": torch.zeros(6, 4),
    "mask": torch.ones(6),
    "cu_seqlens": torch.tensor([0, 3, 6]),
}
BAD = [
    (GOOD, "rewards", [1.0], TypeError, "got list, must be a torch.Tensor"),
    (GOOD, "rewards", torch.zeros(2, 3, dtype=torch.int64), TypeError, "dtype torch.int64"),
    (GOOD, "rewards", torch.zeros(3), ValueError, r"shape \[3\], must be \[B, T\]"),
    (GOOD, "quantiles", torch.zeros(2, 3), ValueError, r"shape \[2, 3\], must be \[2, 3, Q\]"),
    (GOOD, "quantiles", torch.zeros(2, 3, 0), ValueError, "at least one quantile"),
    (GOOD, "mask", torch.ones(2, 4), ValueError, r"shape \[2, 4\], must be \[2, 3\]"),
    (GOOD, "mask", torch.ones(2, 3, dtype=torch.complex64), TypeError, "must be bool, integer"),
    (GOOD, "mask", torch.ones(2, 3, device="meta"), ValueError, "on device meta, must be on cpu"),
    (GOOD, "done", torch.ones(2), ValueError, r"shape \[2\], must be \[2, 3\]"),
    (GOOD, "bootstrap", torch.ones(2, 3), ValueError, r"shape \[2, 3\], must be \[2, 4\]"),
    (GOOD, "gamma", 1.5, ValueError, r"is 1.5, must be a finite number in \[0.0, 1.0\]"),
    (GOOD, "gamma", float("nan"), ValueError, "is nan"),
    (GOOD, "gamma", torch.tensor(0.9), TypeError, "got Tensor, must be a number"),
    (GOOD, "lam", -0.1, ValueError, r"is -0.1"),
    (GOOD, "lam", torch.ones(3), ValueError, r"shape \[3\], must be \[2\]"),
    (GOOD, "mask_mode", "skip", ValueError, "is 'skip', must be one of carry, zero, none"),
    (PACKED, "cu_seqlens", torch.tensor([0.0, 6.0]), TypeError, "must be int32 or int64"),
    (PACKED, "cu_seqlens", torch.tensor([[0, 6]]), ValueError, r"must be \[n \+ 1\]"),
    (PACKED, "cu_seqlens", torch.tensor([1, 6]), ValueError, "starts at 1, must start at 0"),
    (PACKED, "cu_seqlens", torch.tensor([0, 5]), ValueError, "ends at 5, must end at 6"),
    (PACKED, "cu_seqlens", torch.tensor([0, 4, 3, 6]), ValueError, "must not decrease"),
    (PACKED, "rewards", torch.zeros(2, 3), ValueError, r"must be \[N\] with cu_seqlens"),
]


@pytest.mark.parametrize(("good", "name", "value", "error", "message"), BAD)
def test_errors_name_the_argument(good, name, value, error, message):
    for function, extra in ((distributional_gae, {}), (lambda_mixture_targets, {"seed": 1})):
        with pytest.raises(error, match=f"^{name}: .*{message}"):
            function(**(good | extra | {name: value}))


def test_errors_of_one_scan_only():
    with pytest.raises(ValueError, match="^target_lam: is 2.0"):
        distributional_gae(**GOOD, target_lam=2.0)
    with pytest.raises(ValueError, match="^next_quantiles: has shape"):
        distributional_gae(**GOOD, next_quantiles=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="^bootstrap: is given beside next_quantiles"):
        distributional_gae(**GOOD, next_quantiles=GOOD["quantiles"], bootstrap=torch.zeros(2, 4))
    for value, error in ((-1, ValueError), (2**63, ValueError), (0.5, TypeError)):
        with pytest.raises(error, match="^seed: "):
            lambda_mixture_targets(**GOOD, seed=value)
    for value, error in ((torch.zeros(2), TypeError), (torch.arange(3), ValueError)):
        with pytest.raises(error, match="^rows: "):
            lambda_mixture_targets(**GOOD, seed=1, rows=value)


def test_backward_has_no_second_derivative():
    rewards = torch.zeros(2, 3, requires_grad=True)
    weight = torch.ones(2, 3, 4, requires_grad=True)
    advantages, _ = distributional_gae(**(GOOD | {"rewards": rewards}))
    (grad,) = torch.autograd.grad((advantages * weight).sum(), rewards, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()
