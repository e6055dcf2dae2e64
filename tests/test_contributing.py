"""The walk-throughs of CONTRIBUTING.md, followed: each block is a file, and what it adds works."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dfpo.config import build_config
from dfpo.config.choices import ADVANTAGES, CRITICS, POLICY_LOSSES
from dfpo.config.noise import NOISES
from dfpo.run.train import train
from dfpo_kernels import FlowField, integrate_flow
from dfpo_kernels.integrate_flow.reference import METHODS

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
SMALL = {
    "steps": 2, "rollout.prompts": 3, "rollout.samples": 4, "eval.prompts": 0, "plots": False,
    "eval.examples": 0, "device": "cpu",
}  # fmt: skip


def block(title):
    found = re.search(rf"## Adding an? {title}\n.*?```python\n(.*?)```", PAGE, re.S)[1]
    assert len([line for line in found.splitlines() if line.strip()]) < 15, "under fifteen lines"
    return found


@pytest.fixture
def follow(tmp_path, monkeypatch):
    """follow(title) runs that section's block as a file of its own; tables are as before after."""
    tables = (NOISES, ADVANTAGES, POLICY_LOSSES, CRITICS, METHODS)
    kept = [dict(table) for table in tables]
    monkeypatch.syspath_prepend(tmp_path)

    def run(title):
        name = f"added_{title.replace(' ', '_')}"
        (tmp_path / f"{name}.py").write_text(block(title))
        return importlib.import_module(name)

    yield run
    for table, rows in zip(tables, kept, strict=True):
        table.clear()
        table.update(rows)
    for name in [name for name in sys.modules if name.startswith("added_")]:
        del sys.modules[name]


def metrics_of(tmp_path, **settings):
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    run = train(build_config(SMALL | {"runs_dir": str(tmp_path / "runs")} | dotted))
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_noise(follow, tmp_path):
    follow("noise")
    told = metrics_of(tmp_path, noise="stuck=1", critic__warmup_steps=0)
    assert all(row["reward/noisy"] == 0 for row in told)
    assert sum(row["reward/clean"] for row in told) > 0


def test_an_advantage(follow, tmp_path):
    added = follow("advantage")
    metrics_of(tmp_path, algorithm="grpo", target__advantage="above_median")

    class Returns:
        mask = torch.ones(3, 2, dtype=torch.bool)
        token_rewards = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 5.0]])

        class rollout:
            groups = torch.tensor([0, 0, 1])

    # Of two the median is the lower one, of an answer alone with its prompt itself.
    expected = [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    assert added.above_median(Returns).tolist() == expected


def test_a_policy_loss(follow, tmp_path):
    follow("policy loss")
    rows = metrics_of(tmp_path, algorithm="grpo", policy__loss="plain")
    assert rows[-1]["grad_norm/policy"] > 0


def test_a_critic(follow, tmp_path):
    follow("critic")
    rows = metrics_of(tmp_path, algorithm="ppo", critic__kind="bounded", critic__warmup_steps=1)
    assert 0 <= rows[-1]["value/mean"] <= 1 and rows[-1]["grad_norm/critic"] > 0


def ralston(field, z, steps):
    """By hand, one particle: k = v(z, s), l = v(z + 2/3 h k, s + 2/3 h), z + h (k + 3 l) / 4."""
    bias, gain, offset, z_weight, time_weight = field

    def velocity(z, s):
        x = bias + z_weight * z + time_weight * s
        return offset + (gain * x / (1 + np.exp(-x))).sum()

    h = 1 / steps
    for k in range(steps):
        one = velocity(z, k * h)
        two = velocity(z + 2 / 3 * h * one, k * h + 2 / 3 * h)
        z = z + h * (one + 3 * two) / 4
    return z


def some_field(rows=3, width=8):
    draws = np.random.default_rng(0)
    shapes = ((rows, width), (rows, width), (rows,), (width,), (width,))
    return [0.7 * draws.standard_normal(shape) for shape in shapes]


@pytest.mark.parametrize("backend", ["reference", "cpp", "triton"])
def test_an_ode_method(follow, backend):
    """Value and gradient in all kernels, from one row."""
    follow("ODE method")
    field = some_field()
    base = np.linspace(-1, 1, 5)
    expected = np.array(
        [[ralston([x[r] for x in field[:3]] + field[3:], z, 4) for z in base] for r in range(3)]
    )
    eps = 1e-6
    moved = [field[0] + eps, *field[1:]]
    slope = (
        np.array(
            [[ralston([x[r] for x in moved[:3]] + moved[3:], z, 4) for z in base] for r in range(3)]
        ).sum()
        - expected.sum()
    )

    dtype = torch.float64 if backend == "reference" else torch.float32
    tensors = [torch.tensor(x, dtype=dtype) for x in field]
    tensors[0].requires_grad_()

    def run():
        z = torch.tensor(base, dtype=dtype)
        out = integrate_flow(FlowField(*tensors), z, steps=4, method="ralston")
        out.sum().backward()
        return out.detach().double().numpy()

    if backend == "triton":
        pytest.importorskip("triton")
        from kernels.stand_ins import triton_answers

        with triton_answers():
            found = run()
    else:
        found = run()
    error = 1e-12 if backend == "reference" else 1e-5
    np.testing.assert_allclose(found, expected, atol=error, rtol=error)
    np.testing.assert_allclose(tensors[0].grad.sum().item(), slope / eps, rtol=1e-4)
