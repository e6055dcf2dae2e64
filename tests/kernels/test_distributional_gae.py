"""distributional_gae against sums written out token by token, and against its own reference."""

import pytest
import torch
from kernels.scans import double, make_scan, pack, pack_rows
from tolerances import SCAN

from dfpo_kernels import distributional_gae, lambda_mixture_targets
from dfpo_kernels.distributional_gae import reference

MODES = ["carry", "zero", "none"]
# Around the widths of the lanes, and both lane groups: one particle, and many.
SHAPES = [
    (1, 1, 1), (3, 5, 1), (17, 300, 1), (33, 64, 1), (2, 1, 3), (4, 40, 2), (3, 17, 8),
    (2, 33, 16), (3, 20, 33), (2, 18, 64), (2, 9, 130),
]  # fmt: skip


def assert_close(actual, expected, dtype=torch.float32):
    atol, rtol = SCAN[dtype]
    torch.testing.assert_close(
        actual.double(), expected.double(), atol=atol, rtol=rtol, equal_nan=True
    )


def slow_gae(
    rewards, quantiles, mask, *, gamma, lam, target_lam=None, bootstrap=None, done=None,
    next_quantiles=None, mask_mode="carry",
):  # fmt: skip
    """The definition as sums in float64: A_t = sum_k (gamma lam)^k delta_{t+k} over the tokens
    that are steps, up to a done one; no recursion."""
    rewards, quantiles = rewards.double().clone(), quantiles.double().clone()
    rows, length, _ = quantiles.shape
    successors = None if next_quantiles is None else next_quantiles.double().clone()
    unmasked = mask != 0
    if mask_mode == "zero":
        rewards[~unmasked], quantiles[~unmasked] = 0, 0
        if successors is not None:
            successors[~unmasked] = 0
    outputs = [torch.zeros_like(quantiles), torch.zeros_like(quantiles)]
    for b in range(rows):
        steps = [t for t in range(length) if mask_mode != "carry" or unmasked[b, t]]
        ends = [done is not None and bool(done[b, t]) for t in steps]
        deltas = []
        for i, t in enumerate(steps):
            if successors is not None:
                successor = successors[b, t]
            elif i + 1 < len(steps):
                successor = quantiles[b, steps[i + 1]]
            else:
                successor = 0 if bootstrap is None else bootstrap[b].double()
            deltas.append(rewards[b, t] - quantiles[b, t] + (0 if ends[i] else gamma * successor))
        for out, trace in zip(
            outputs, (lam, lam if target_lam is None else target_lam), strict=True
        ):
            decay = gamma * float(trace[b] if isinstance(trace, torch.Tensor) else trace)
            for t in range(length):
                # A masked token that is no step shows the next step's.
                first = sum(step < t for step in steps)
                for i in range(first, len(steps)):
                    out[b, t] += decay ** (i - first) * deltas[i]
                    if ends[i]:
                        break
    return outputs[0], quantiles + outputs[1]


def test_two_tokens_by_hand():
    # gamma = .5, lam = .5, no bootstrap. Token 1: delta = 4 - 2 = 2, A = 2, target = 2 + 2 = 4.
    # Token 0: delta = 1 + .5 * 2 - 3 = -1, A = -1 + .25 * 2 = -.5, target = 3 - .5 = 2.5.
    advantages, targets = distributional_gae(
        torch.tensor([[1.0, 4.0]]), torch.tensor([[[3.0], [2.0]]]), torch.ones(1, 2),
        gamma=0.5, lam=0.5,
    )  # fmt: skip
    assert advantages.flatten().tolist() == [-0.5, 2.0]
    assert targets.flatten().tolist() == [2.5, 4.0]


def test_a_tool_token_by_hand():
    # As above with a tool token (value 9, reward 7) between them. Carried over: token 0 is as if
    # it were not there, and the tool token shows A_1 = 2 and 9 + 2. Zeroed: delta_tool = .5 * 2,
    # A_tool = 1 + .25 * 2 = 1.5; delta_0 = 1 + .5 * 0 - 3 = -2, A_0 = -2 + .25 * 1.5 = -1.625.
    inputs = {
        "rewards": torch.tensor([[1.0, 7.0, 4.0]]),
        "quantiles": torch.tensor([[[3.0], [9.0], [2.0]]]),
        "mask": torch.tensor([[1, 0, 1]]),
        "gamma": 0.5,
        "lam": 0.5,
    }
    carried, targets = distributional_gae(**inputs)
    assert carried.flatten().tolist() == [-0.5, 2.0, 2.0]
    assert targets.flatten().tolist() == [2.5, 11.0, 4.0]
    zeroed, targets = distributional_gae(**inputs, mask_mode="zero")
    assert zeroed.flatten().tolist() == [-1.625, 1.5, 2.0]
    assert targets.flatten().tolist() == [1.375, 1.5, 4.0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_is_its_definition(shape, mode):
    inputs = make_scan(*shape, seed=sum(shape))
    parameters = {"gamma": 0.9, "lam": 0.8, "mask_mode": mode}
    for actual, expected in zip(
        distributional_gae(**inputs, **parameters), slow_gae(**inputs, **parameters), strict=True
    ):
        assert_close(actual, expected)


@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("num_quantiles", [1, 5])
def test_ends_of_gamma_and_lam(gamma, lam, num_quantiles):
    inputs = make_scan(4, 21, num_quantiles)
    for actual, expected in zip(
        distributional_gae(**inputs, gamma=gamma, lam=lam, target_lam=1.0 - lam),
        slow_gae(**inputs, gamma=gamma, lam=lam, target_lam=1.0 - lam),
        strict=True,
    ):
        assert_close(actual, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_quantiles", [1, 20])
def test_explicit_successors_and_lam_per_sequence(mode, num_quantiles):
    inputs = make_scan(19, 23, num_quantiles, bootstrap=False)
    inputs["next_quantiles"] = torch.randn_like(inputs["quantiles"])
    inputs |= {"lam": torch.rand(19), "target_lam": torch.rand(19), "gamma": 0.9}
    actual = distributional_gae(**inputs, mask_mode=mode)
    expected = slow_gae(**inputs, mask_mode=mode)
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other)


# What the trainers compute, from their recursions, one scalar at a time in float64.


def verl_or_nemo_rl(r, v, m, gamma, lam, target_lam):
    advantages, returns = torch.zeros_like(r), torch.zeros_like(r)
    for b in range(len(r)):
        following = advantage = trace = 0.0
        for t in range(r.shape[1] - 1, -1, -1):
            if m[b, t]:
                delta = r[b, t] + gamma * following - v[b, t]
                advantage = delta + gamma * lam * advantage
                trace = delta + gamma * target_lam * trace
                following = v[b, t]
            advantages[b, t], returns[b, t] = advantage, trace + v[b, t]
    return advantages, returns


def openrlhf_or_trl(r, v, m, gamma, lam, target_lam):
    r, v = r * m, v * m
    advantages = torch.zeros_like(r)
    for b in range(len(r)):
        for t in range(r.shape[1] - 1, -1, -1):
            last = t == r.shape[1] - 1
            delta = r[b, t] + (0.0 if last else gamma * v[b, t + 1]) - v[b, t]
            advantages[b, t] = delta + (0.0 if last else gamma * lam * advantages[b, t + 1])
    return advantages, advantages + v


def slime(r, v, m, gamma, lam, target_lam):
    return openrlhf_or_trl(r, v, torch.ones_like(r), gamma, lam, target_lam)


@pytest.mark.parametrize(
    ("trainer", "mode", "target_lam"),
    [
        (verl_or_nemo_rl, "carry", 0.9),
        (verl_or_nemo_rl, "carry", 1.0),
        (openrlhf_or_trl, "zero", 0.9),
        (slime, "none", 0.9),
    ],
)
def test_equals_the_trainer(trainer, mode, target_lam):
    # Two turns with a tool's tokens between, padding on the left or right, and a row of padding.
    mask = torch.tensor(
        [
            [1, 1, 1, 0, 0, 1, 1, 1],
            [0, 0, 1, 1, 0, 1, 1, 1],
            [1, 1, 0, 0, 1, 1, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0],
            [1, 1, 1, 1, 1, 1, 1, 1],
        ]
    )
    g = torch.Generator().manual_seed(1)
    r, v = (torch.randn(5, 8, generator=g, dtype=torch.float64) for _ in range(2))
    expected = trainer(r, v, mask.double(), 0.97, 0.9, target_lam)
    actual = distributional_gae(
        r.float(), v.float().unsqueeze(-1), mask, gamma=0.97, lam=0.9, target_lam=target_lam,
        mask_mode=mode,
    )  # fmt: skip
    for one, other in zip(actual, expected, strict=True):
        assert_close(one.squeeze(-1), other)


def test_equals_torchrl():
    g = torch.Generator().manual_seed(2)
    r, v, following = (torch.randn(3, 12, generator=g, dtype=torch.float64) for _ in range(3))
    done = torch.rand(3, 12, generator=g) < 0.3
    advantages = torch.zeros_like(r)
    for b in range(3):
        advantage = 0.0
        for t in range(11, -1, -1):
            go_on = 1.0 - float(done[b, t])
            delta = r[b, t] + 0.97 * go_on * following[b, t] - v[b, t]
            advantage = delta + 0.97 * 0.9 * go_on * advantage
            advantages[b, t] = advantage
    actual, targets = distributional_gae(
        r.float(), v.float().unsqueeze(-1), torch.ones(3, 12), gamma=0.97, lam=0.9, done=done,
        next_quantiles=following.float().unsqueeze(-1), mask_mode="none",
    )  # fmt: skip
    assert_close(actual.squeeze(-1), advantages)
    assert_close(targets.squeeze(-1), advantages + v)


@pytest.mark.parametrize("num_quantiles", [1, 12])
@pytest.mark.parametrize("mode", ["carry", "zero"])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_garbage_at_masked_tokens_stays_there(num_quantiles, mode, garbage):
    inputs = make_scan(5, 30, num_quantiles)
    clean = distributional_gae(**inputs, gamma=0.9, lam=0.9, mask_mode=mode)
    masked = ~inputs["mask"]
    dirty = dict(inputs, rewards=inputs["rewards"].masked_fill(masked, garbage))
    dirty["quantiles"] = inputs["quantiles"].masked_fill(masked.unsqueeze(-1), garbage)
    advantages, targets = distributional_gae(**dirty, gamma=0.9, lam=0.9, mask_mode=mode)
    assert torch.equal(advantages, clean[0])
    assert torch.equal(targets[~masked], clean[1][~masked])
    if mode == "zero":
        assert torch.equal(targets, clean[1])


def test_nothing_crosses_done():
    inputs = make_scan(4, 20, 6, masks="ones", done=0.0)
    inputs["done"] = torch.zeros(4, 20)
    inputs["done"][:, 9] = 1
    before = distributional_gae(**inputs, gamma=1.0, lam=1.0)
    inputs["rewards"][:, 10:] = float("nan")
    inputs["quantiles"][:, 10:] = float("inf")
    after = distributional_gae(**inputs, gamma=1.0, lam=1.0)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[:, :10], other[:, :10])


FLAG_DTYPES = [
    torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64,
]  # fmt: skip


@pytest.mark.parametrize("dtype", FLAG_DTYPES)
@pytest.mark.parametrize("num_quantiles", [1, 3])
def test_mask_and_done_of_any_dtype(dtype, num_quantiles):
    inputs = make_scan(5, 19, num_quantiles)
    expected = distributional_gae(**inputs, gamma=0.9, lam=0.9)
    for name in ("mask", "done"):
        flags = inputs[name].to(dtype)
        # Any nonzero number counts, and -0.0 is zero.
        inputs[name] = flags if dtype == torch.bool else -3 * flags
        if dtype.is_signed:
            assert inputs[name].min() == -3
    for one, other in zip(distributional_gae(**inputs, gamma=0.9, lam=0.9), expected, strict=True):
        assert torch.equal(one, other)


HALVES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("reward_dtype", HALVES)
@pytest.mark.parametrize("num_quantiles", [1, 33])
def test_dtypes_mix(dtype, reward_dtype, num_quantiles):
    inputs = make_scan(5, 30, num_quantiles, bootstrap=False)
    inputs["next_quantiles"] = torch.randn_like(inputs["quantiles"]).to(reward_dtype)
    inputs["rewards"] = inputs["rewards"].to(reward_dtype)
    inputs["quantiles"] = inputs["quantiles"].to(dtype)
    actual = distributional_gae(**inputs, gamma=0.9, lam=0.9)
    expected = reference.distributional_gae(**double(inputs), gamma=0.9, lam=0.9)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == dtype
        assert_close(one, other, dtype)


@pytest.mark.parametrize("num_quantiles", [1, 6])
def test_packed_is_padded(num_quantiles):
    lengths = [7, 0, 301, 1, 64, 16]
    inputs = make_scan(len(lengths), max(lengths), num_quantiles)
    column = torch.arange(max(lengths))
    inputs["mask"] &= column < torch.tensor(lengths)[:, None]
    parameters = {"gamma": 0.9, "lam": torch.rand(len(lengths)), "target_lam": 0.5}
    padded = distributional_gae(**inputs, **parameters)
    packed = distributional_gae(**pack(inputs, lengths), **parameters)
    for one, other in zip(packed, padded, strict=True):
        assert torch.equal(one, pack_rows(other, lengths))


@pytest.mark.parametrize("num_quantiles", [1, 6])
def test_layouts_that_are_not_contiguous(num_quantiles):
    inputs = make_scan(5, 40, num_quantiles)
    expected = distributional_gae(**inputs, gamma=0.9, lam=0.9)
    strided = {
        "rewards": inputs["rewards"].T.contiguous().T,
        "quantiles": inputs["quantiles"].transpose(0, 1).contiguous().transpose(0, 1),
        "mask": torch.stack([inputs["mask"]] * 2, dim=-1)[..., 0],
        "done": torch.cat([inputs["done"]] * 2, dim=1)[:, :40],
        "bootstrap": inputs["bootstrap"].T.contiguous().T,
    }
    for one, other in zip(distributional_gae(**strided, gamma=0.9, lam=0.9), expected, strict=True):
        assert one.is_contiguous()
        assert torch.equal(one, other)
    inputs["quantiles"] = torch.stack([inputs["quantiles"]] * 2, dim=-1)[..., 1]
    for one, other in zip(distributional_gae(**inputs, gamma=0.9, lam=0.9), expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4), (0, 0, 1), (3, 0, 1)])
def test_empty(shape):
    inputs = make_scan(*shape[:2], shape[2]) if shape[0] and shape[1] else {
        "rewards": torch.zeros(shape[:2]), "quantiles": torch.zeros(shape),
        "mask": torch.zeros(shape[:2]),
    }  # fmt: skip
    for dtype in (torch.float32, torch.float64):
        inputs["quantiles"] = inputs["quantiles"].to(dtype)
        for output in distributional_gae(**inputs, gamma=0.9, lam=0.9):
            assert output.shape == shape


@pytest.mark.parametrize("num_quantiles", [1, 33])
def test_mean_over_particles_is_scalar_gae(num_quantiles):
    inputs = make_scan(4, 50, num_quantiles)
    advantages, targets = distributional_gae(**inputs, gamma=0.95, lam=0.9)
    scalar = dict(inputs, quantiles=inputs["quantiles"].mean(-1, keepdim=True))
    scalar["bootstrap"] = inputs["bootstrap"].mean(-1, keepdim=True)
    expected, _ = distributional_gae(**scalar, gamma=0.95, lam=0.9)
    spread = targets - inputs["quantiles"]
    for particles in (advantages, spread):
        torch.testing.assert_close(particles.mean(-1), expected.squeeze(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_quantiles", [1, 8])
def test_invariances(num_quantiles):
    inputs = make_scan(6, 40, num_quantiles, bootstrap=False)
    inputs["mask"][:, :2] = True
    inputs["done"].zero_()
    advantages, targets = distributional_gae(**inputs, gamma=1.0, lam=0.9)

    # A constant on the last reward and on every value moves the targets alone.
    last = 39 - inputs["mask"].int().flip(1).argmax(1)
    shifted = dict(inputs, quantiles=inputs["quantiles"] + 3.0)
    shifted["rewards"] = inputs["rewards"].clone()
    shifted["rewards"][torch.arange(6), last] += 3.0
    moved = distributional_gae(**shifted, gamma=1.0, lam=0.9)
    assert_close(moved[0], advantages)
    assert_close(moved[1], targets + 3.0)

    order = torch.randperm(6)
    permuted = {k: None if x is None else x[order] for k, x in inputs.items()}
    assert torch.equal(distributional_gae(**permuted, gamma=1.0, lam=0.9)[1], targets[order])

    for side in ((5, 0), (0, 7)):
        padded = {
            "rewards": torch.nn.functional.pad(inputs["rewards"], side),
            "mask": torch.nn.functional.pad(inputs["mask"], side),
            "quantiles": torch.nn.functional.pad(inputs["quantiles"], (0, 0, *side)),
        }
        outputs = distributional_gae(**padded, gamma=1.0, lam=0.9)[1]
        assert torch.equal(outputs[:, side[0] : side[0] + 40], targets)


# Of 2 M elements and more: such outputs are written past the cache. Rows that start on a cache
# line and rows that do not, quantiles that fill vectors and some that do not.
@pytest.mark.parametrize("shape", [(33, 2048, 32), (70, 1000, 40), (520, 4096, 1), (520, 4099, 1)])
def test_a_large_batch_is_its_parts(shape, variant):
    inputs = make_scan(*shape)
    ids = torch.arange(shape[0])
    settings = {"gamma": 0.97, "lam": 0.9}

    def run(part):
        some = {name: x[part] for name, x in inputs.items()}
        mixture = lambda_mixture_targets(**some, **settings, seed=5, rows=ids[part])
        return *distributional_gae(**some, **settings), mixture

    middle = shape[0] // 2
    whole, first, second = run(slice(None)), run(slice(middle)), run(slice(middle, None))
    for all_rows, *parts in zip(whole, first, second, strict=True):
        assert torch.equal(all_rows, torch.cat(parts))
