"""lambda_mixture_targets: its recursion, its distribution, and what must not change a number."""

import pytest
import torch
from kernels.scans import double, make_scan, pack, pack_rows
from tolerances import SCAN

from dfpo_kernels import distributional_gae, lambda_mixture_targets, philox, reference

MODES = ["carry", "zero", "none"]
SHAPES = [
    (1, 1, 1), (17, 300, 1), (2, 1, 3), (4, 40, 2), (3, 17, 8), (2, 33, 16), (3, 20, 33),
    (2, 18, 64), (2, 9, 130),
]  # fmt: skip


def assert_close(actual, expected, dtype=torch.float32):
    atol, rtol = SCAN[dtype]
    torch.testing.assert_close(actual.double(), expected.double(), atol=atol, rtol=rtol)


def slow_mixture(
    rewards, quantiles, mask, *, gamma, lam, seed, bootstrap=None, done=None, mask_mode="carry"
):
    """One scalar at a time, in float64: walk along the steps from t until a bit says stop."""
    out = torch.zeros(quantiles.shape, dtype=torch.float64)
    for b in range(out.shape[0]):
        unmasked = [t for t in range(out.shape[1]) if mask[b, t]]
        first = unmasked[0] if unmasked else out.shape[1]
        steps = unmasked if mask_mode == "carry" else list(range(out.shape[1]))
        for t in range(out.shape[1]):
            for q in range(out.shape[2]):
                end = 0.0 if bootstrap is None else float(bootstrap[b, q])
                total, discount, ended = 0.0, 1.0, False
                for i, step in enumerate(steps):
                    if step < t:
                        continue
                    blank = mask_mode == "zero" and step not in unmasked
                    total += discount * (0.0 if blank else float(rewards[b, step]))
                    if done is not None and done[b, step]:
                        ended = True
                        break
                    discount *= gamma
                    if i + 1 == len(steps):
                        break
                    number = step - first if mask_mode == "zero" else i
                    counter = torch.tensor([q // 4, number, b, 0])
                    word = philox.philox4x32(counter, philox.seed_key(seed))[q % 4]
                    if not float((word >> 8) * 2.0**-24) < lam:
                        following = steps[i + 1]
                        blank = mask_mode == "zero" and following not in unmasked
                        total += discount * (0.0 if blank else float(quantiles[b, following, q]))
                        ended = True
                        break
                out[b, t, q] = total if ended else total + discount * end
    return out


def test_two_tokens_by_hand():
    # lam = .5, gamma = .5, seed 0, row 0. Token 0 draws word 0 of the known answer of Philox at
    # counter 0 and key 0, 6627e8d5: u = 0x6627e8 / 2^24 = .399 < .5, so particle 0 follows.
    # y_1 = 4 + .5 * 8 = 8, y_0 = 1 + .5 * 8 = 5. Particle 1 draws e169c58d: u = .881, so it takes
    # z_1 = 2: y_0 = 1 + .5 * 2 = 2.
    targets = lambda_mixture_targets(
        torch.tensor([[1.0, 4.0]]), torch.tensor([[[3.0, 3.0], [2.0, 2.0]]]), torch.ones(1, 2),
        gamma=0.5, lam=0.5, seed=0, bootstrap=torch.tensor([[8.0, 8.0]]),
    )  # fmt: skip
    assert targets.tolist() == [[[5.0, 2.0], [8.0, 8.0]]]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", [{}, {"done": 0.0, "bootstrap": False}])
def test_is_a_walk_until_a_bit_says_stop(mode, options):
    inputs = make_scan(3, 9, 5, **options)
    parameters = {"gamma": 0.9, "lam": 0.7, "seed": 11, "mask_mode": mode}
    assert_close(
        lambda_mixture_targets(**inputs, **parameters), slow_mixture(**inputs, **parameters)
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_kernels_are_the_reference(shape, mode):
    inputs = make_scan(*shape, seed=sum(shape))
    parameters = {"gamma": 0.9, "lam": 0.8, "seed": (3 << 40) + 7, "mask_mode": mode}
    actual = lambda_mixture_targets(**inputs, **parameters)
    assert_close(actual, reference.lambda_mixture_targets(**double(inputs), **parameters))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_quantiles", [1, 6])
def test_lam_zero_is_one_step_and_lam_one_is_monte_carlo(mode, num_quantiles):
    inputs = make_scan(5, 30, num_quantiles)
    parameters = {"gamma": 0.9, "mask_mode": mode}
    # GAE's targets at lam = 0 and 1 are the same returns, up to the rounding of z - z.
    for lam in (0.0, 1.0):
        targets = lambda_mixture_targets(**inputs, **parameters, lam=lam, seed=1)
        other_seed = lambda_mixture_targets(**inputs, **parameters, lam=lam, seed=2)
        assert torch.equal(targets, other_seed)
        _, expected = distributional_gae(**inputs, **parameters, lam=lam)
        at_steps = torch.ones_like(inputs["mask"]) if mode != "carry" else inputs["mask"]
        assert_close(targets[at_steps], expected[at_steps])


def test_monte_carlo_is_exact_for_every_particle():
    rewards = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    targets = lambda_mixture_targets(
        rewards, torch.randn(1, 4, 64), torch.ones(1, 4), gamma=1.0, lam=1.0, seed=5
    )
    assert torch.equal(targets[0], torch.tensor([10.0, 9.0, 7.0, 4.0])[:, None].expand(4, 64))


def test_masked_tokens_show_the_carried_target():
    inputs = make_scan(4, 12, 3, masks="ones", done=0.0)
    inputs["mask"][:, 5:8] = False
    inputs["mask"][:, 11] = False
    targets = lambda_mixture_targets(**inputs, gamma=0.9, lam=0.8, seed=1)
    for t in (5, 6, 7):
        assert torch.equal(targets[:, t], targets[:, 8])
    assert torch.equal(targets[:, 11], inputs["bootstrap"])


@pytest.mark.parametrize("mode", MODES)
def test_mean_over_bits_is_the_gae_target(mode):
    # 20 000 particles with one value: the average over bits is TD(lambda), also across the gap.
    g = torch.Generator().manual_seed(0)
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 1]])
    inputs = {"rewards": torch.randn(1, 8, generator=g), "mask": mask}
    value = torch.randn(1, 8, 1, generator=g)
    _, expected = distributional_gae(**inputs, quantiles=value, gamma=0.9, lam=0.8, mask_mode=mode)
    particles = value.expand(1, 8, 20_000)
    targets = lambda_mixture_targets(
        **inputs, quantiles=particles, gamma=0.9, lam=0.8, seed=2, mask_mode=mode
    )
    standard_error = targets.std(-1) / 20_000**0.5
    at_steps = mask.bool() if mode == "carry" else torch.ones(1, 8, dtype=torch.bool)
    off = (targets.mean(-1) - expected.squeeze(-1)).abs()
    assert (off <= 4.5 * standard_error + 1e-5)[at_steps].all()


def test_targets_keep_the_spread_of_returns():
    # The reward at the last of 6 tokens is Bernoulli(.3), and particles are exact samples of it.
    # Any stop leaves a Bernoulli(.3) sample, so targets have mean .3 and std sqrt(.3 .7) = .458.
    # z + A, in contrast, adds five independent particles: at token 0 with lam = .9 the variance is
    # .21 times sum_k w_k^2 of the weights .1 .1*.9 ... on the later particles and .9^5 on the
    # reward: .21 * (.01 (1 + .81 + .81^2 + .81^3 + .81^4) + .81^5) = .0806, std .284.
    rows, particles = 20_000, 2
    g = torch.Generator().manual_seed(0)
    rewards = torch.zeros(rows, 6)
    rewards[:, -1] = (torch.rand(rows, generator=g) < 0.3).float()
    samples = (torch.rand(rows, 6, particles, generator=g) < 0.3).float()
    mask = torch.ones(rows, 6)
    targets = lambda_mixture_targets(rewards, samples, mask, gamma=1.0, lam=0.9, seed=4)
    # Standard errors over 40 000 samples: .0023 and .0010; particles of a row share its reward.
    assert (targets.mean((0, 2)) - 0.3).abs().max() < 4 * 0.0033
    assert (targets.std((0, 2)) - 0.458).abs().max() < 4 * 0.0015
    _, shrunk = distributional_gae(rewards, samples, mask, gamma=1.0, lam=0.9)
    assert abs(shrunk[:, 0].std() - 0.284) < 4 * 0.0015


@pytest.mark.parametrize("mode", ["carry", "zero"])
@pytest.mark.parametrize("num_quantiles", [1, 6])
def test_padding_changes_nothing(mode, num_quantiles):
    inputs = make_scan(4, 20, num_quantiles, bootstrap=False, done=0.05)
    inputs["mask"][:, [0, 19]] = True
    parameters = {"gamma": 0.9, "lam": 0.8, "seed": 6, "mask_mode": mode}
    expected = lambda_mixture_targets(**inputs, **parameters)
    for side in ((9, 0), (0, 70), (3, 4)):
        padded = {
            name: torch.nn.functional.pad(inputs[name], side)
            for name in ("rewards", "mask", "done")
        }
        padded["quantiles"] = torch.nn.functional.pad(
            inputs["quantiles"], (0, 0, *side), value=float("nan")
        )
        targets = lambda_mixture_targets(**padded, **parameters)
        assert torch.equal(targets[:, side[0] : side[0] + 20], expected)


@pytest.mark.parametrize("num_quantiles", [1, 6])
def test_micro_batches_and_order_change_nothing(num_quantiles):
    inputs = make_scan(20, 15, num_quantiles)
    rows = torch.randint(0, 2**62, (20,))
    parameters = {"gamma": 0.9, "lam": torch.rand(20), "seed": 6}
    expected = lambda_mixture_targets(**inputs, rows=rows, **parameters)
    for part in (torch.arange(3), torch.arange(3, 20), torch.randperm(20)):
        some = {name: x[part] for name, x in (inputs | {"rows": rows}).items()}
        targets = lambda_mixture_targets(**some, **(parameters | {"lam": parameters["lam"][part]}))
        assert torch.equal(targets, expected[part])
    defaults = lambda_mixture_targets(**inputs, **parameters)
    assert torch.equal(
        defaults, lambda_mixture_targets(**inputs, rows=torch.arange(20), **parameters)
    )
    assert not torch.equal(defaults, expected)


@pytest.mark.parametrize("num_quantiles", [1, 6])
def test_packed_is_padded(num_quantiles):
    lengths = [7, 0, 301, 1, 64, 16]
    inputs = make_scan(len(lengths), max(lengths), num_quantiles)
    inputs["mask"] &= torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    parameters = {"gamma": 0.9, "lam": torch.rand(6), "seed": 9}
    padded = lambda_mixture_targets(**inputs, **parameters)
    packed = lambda_mixture_targets(**pack(inputs, lengths), **parameters)
    assert torch.equal(packed, pack_rows(padded, lengths))


@pytest.mark.parametrize("mode", ["carry", "zero"])
@pytest.mark.parametrize("num_quantiles", [1, 12])
def test_garbage_at_masked_tokens_stays_there(mode, num_quantiles):
    inputs = make_scan(5, 30, num_quantiles)
    parameters = {"gamma": 0.9, "lam": 0.8, "seed": 3, "mask_mode": mode}
    clean = lambda_mixture_targets(**inputs, **parameters)
    masked = ~inputs["mask"]
    inputs["rewards"] = inputs["rewards"].masked_fill(masked, float("nan"))
    inputs["quantiles"] = inputs["quantiles"].masked_fill(masked.unsqueeze(-1), float("nan"))
    assert torch.equal(lambda_mixture_targets(**inputs, **parameters), clean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_quantiles", [1, 33])
def test_half_precision(dtype, num_quantiles):
    inputs = make_scan(5, 30, num_quantiles)
    inputs["quantiles"] = inputs["quantiles"].to(dtype)
    parameters = {"gamma": 0.9, "lam": 0.8, "seed": 3}
    targets = lambda_mixture_targets(**inputs, **parameters)
    assert targets.dtype == dtype
    assert_close(targets, reference.lambda_mixture_targets(**double(inputs), **parameters), dtype)


@pytest.mark.parametrize("shape", [(0, 5, 4), (3, 0, 4), (0, 0, 1), (3, 0, 1)])
def test_empty(shape):
    for dtype in (torch.float32, torch.float64):
        targets = lambda_mixture_targets(
            torch.zeros(shape[:2]), torch.zeros(shape, dtype=dtype), torch.zeros(shape[:2]),
            gamma=0.9, lam=0.9, seed=0,
        )  # fmt: skip
        assert targets.shape == shape
