"""Draws are functions of what they are for."""

import scipy.stats
import torch

from dfpo.config.draws import Stream, uniforms

IDS = torch.arange(50)


def test_a_draw_depends_on_its_answer_and_not_on_the_batch():
    whole = uniforms(3, Stream.NOISE, 7, IDS, 6)
    assert torch.equal(uniforms(3, Stream.NOISE, 7, IDS[20:23], 6), whole[20:23])
    assert torch.equal(uniforms(3, Stream.NOISE, 7, IDS.flip(0), 2), whole.flip(0)[:, :2])


def test_seed_purpose_and_step_each_draw_anew():
    of = [
        uniforms(seed, stream, step, IDS, 8).flatten()
        for seed in (0, 1)
        for stream in Stream
        for step in (0, 1)
    ]
    rows = torch.stack(of)
    correlations = torch.corrcoef(rows) - torch.eye(len(of))
    # 400 draws each: a correlation of independent rows has a standard deviation of 1/20.
    assert correlations.abs().max() < 5 / 20


def test_draws_are_uniform():
    values = uniforms(0, Stream.SAMPLING, 0, torch.arange(2000), 5).flatten()
    assert values.min() >= 0 and values.max() < 1
    assert scipy.stats.kstest(values.numpy(), "uniform").pvalue > 0.001
