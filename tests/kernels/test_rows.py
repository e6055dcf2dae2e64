"""Conversions of csrc/rows.h, seen through an op that adds nothing: at a done token advantage is
reward - value, so with values of 0 it is the reward."""

import pytest
import torch

from dfpo_kernels import distributional_gae

HALVES = [torch.bfloat16, torch.float16]


def through_the_op(rewards: torch.Tensor, value_dtype: torch.dtype) -> torch.Tensor:
    ones = torch.ones_like(rewards, dtype=torch.bool)
    zeros = torch.zeros(*rewards.shape, 1, dtype=value_dtype)
    advantages, _ = distributional_gae(rewards, zeros, ones, gamma=1.0, lam=1.0, done=ones)
    return advantages.squeeze(-1)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", [(1 << 16, 1), (1, 1 << 16)])
def test_every_half_pattern_is_read_as_torch_reads_it(dtype, shape):
    halves = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype).reshape(shape)
    read = through_the_op(halves, torch.float32)
    assert torch.equal(read.isnan(), halves.isnan())
    assert torch.equal(read.nan_to_num(), halves.float().nan_to_num())


def floats_worth_rounding(dtype: torch.dtype) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 31), 1 << 31, (1 << 16,), generator=g).to(torch.int32)
    halves = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype).float()
    # Half-way between neighbours, and the floats on either side of half-way.
    midway = (halves.double() + halves.roll(1).double()).mul(0.5).float()
    beside = [torch.nextafter(midway, torch.tensor(end)) for end in (-torch.inf, torch.inf)]
    return torch.cat([bits.view(torch.float32), halves, midway, *beside])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("columns", [1, 16])
def test_floats_are_rounded_as_torch_rounds_them(dtype, columns):
    floats = floats_worth_rounding(dtype).reshape(-1, columns)
    written = through_the_op(floats, dtype)
    expected = floats.to(dtype)
    assert torch.equal(written.isnan(), expected.isnan())
    assert torch.equal(written.nan_to_num(), expected.nan_to_num())
