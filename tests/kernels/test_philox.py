"""Philox4x32-10 in plain PyTorch against published numbers; the kernels draw the same words."""

import pytest
import torch

from dfpo_kernels import lambda_mixture_targets, philox

# Known answers published with Random123: counter, key, words.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    assert philox.philox4x32(torch.tensor(counter), key).tolist() == list(words)


def test_a_batch_of_counters_and_keys_is_one_at_a_time():
    counters = torch.tensor([counter for counter, _, _ in KNOWN]).reshape(3, 1, 4)
    keys = torch.tensor([key for _, key, _ in KNOWN]).reshape(3, 1, 2)
    words = torch.tensor([words for _, _, words in KNOWN]).reshape(3, 1, 4)
    assert torch.equal(philox.philox4x32(counters, keys), words)


def test_seed_key_splits_a_64_bit_seed():
    assert philox.seed_key((7 << 32) | 5) == (5, 7)


def test_uniform24_takes_the_upper_bits_and_stays_below_one():
    words = torch.tensor([0, 255, 256, 0xFFFFFFFF])
    assert philox.uniform24(words).tolist() == [0.0, 0.0, 2.0**-24, 1 - 2.0**-24]


def test_uniforms_look_uniform():
    counter = torch.zeros(50_000, 4, dtype=torch.int64)
    counter[:, 0] = torch.arange(50_000)
    u = philox.uniform24(philox.philox4x32(counter, philox.seed_key(3))).double()
    # Standard errors of mean and variance of 200 000 uniforms: 6.5e-4 and 1.7e-4.
    assert abs(u.mean() - 0.5) < 4 * 6.5e-4
    assert abs(u.var() - 1 / 12) < 4 * 1.7e-4
    assert abs(torch.corrcoef(u.T) - torch.eye(4)).max() < 4 * 50_000**-0.5


@pytest.mark.parametrize("num_quantiles", [1, 2, 7, 16, 33, 64, 130])
def test_kernels_draw_the_same_words(num_quantiles):
    # Two tokens, reward 0 then 1, no values: y_0 is the bit itself, following to y_1 = 1.
    rows = torch.tensor([3, 2**32 + 5, 2**63 - 1])
    rewards = torch.tensor([[0.0, 1.0]]).expand(3, 2)
    values = torch.zeros(3, 2, num_quantiles)
    seed, lam = (9 << 40) + 1, 0.625
    bits = lambda_mixture_targets(
        rewards, values, torch.ones(3, 2), gamma=1.0, lam=lam, seed=seed, rows=rows
    )[:, 0]
    for b, row in enumerate(rows.tolist()):
        for q in range(num_quantiles):
            counter = torch.tensor([q // 4, 0, row & 0xFFFFFFFF, row >> 32])
            word = philox.philox4x32(counter, philox.seed_key(seed))[q % 4]
            assert bits[b, q] == float((word >> 8) * 2.0**-24 < lam)
