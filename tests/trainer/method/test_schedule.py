"""Learning rates over a run, weight decay, and a resume in the middle of a schedule."""

import json
import math

import pytest
import torch

from dfpo.__main__ import main
from dfpo.config import ConfigError, build_config
from dfpo.method.schedule import factor_of, factors, scheduled
from dfpo.run.setup import parameter_groups

SMALL = [
    "train", "--eval.prompts", "0", "--eval.examples", "0", "--plots", "false",
    "--rollout.prompts", "2", "--rollout.samples", "2", "--rollout.max-new-tokens", "8",
    "--critic.num-quantiles", "4", "--critic.warmup-steps", "1",
]  # fmt: skip


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant_with_warmup", 2, [0, 0.5, 1, 1, 1, 1]),
        ("linear", 2, [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ("cosine", 0, [(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)]),
        ("inverse_sqrt", 2, [0, 0.5, 1, (2 / 3) ** 0.5, 0.5**0.5, 0.4**0.5]),
    ],
)
def test_factors_are_the_formulas_of_the_names(schedule, warmup, expected):
    config = build_config({"schedule": schedule, "schedule_warmup": warmup, "steps": 6})
    factor = factor_of(config)
    assert [factor(step) for step in range(6)] == pytest.approx(expected)


def test_the_policys_schedule_begins_after_the_critics_warm_up():
    config = build_config({"schedule": "linear", "steps": 10, "critic.warmup_steps": 5})
    assert factors(config, 4) == {"critic": pytest.approx(0.6)}
    assert factors(config, 5) == {"policy": 1.0, "critic": pytest.approx(0.5)}
    assert factors(config, 9) == {"policy": pytest.approx(0.2), "critic": pytest.approx(0.1)}


def test_rates_are_those_of_the_settings_again_afterwards():
    config = build_config({"schedule": "linear", "steps": 4, "critic.warmup_steps": 0})
    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=0.1)
    with scheduled({"policy": optimizer, "critic": None}, config, 3) as metrics:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert metrics == {"learning_rate/policy": pytest.approx(0.025)}


def test_matrices_decay_and_vectors_do_not():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1, 0.5), fused=True)
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    # Without a gradient AdamW multiplies by 1 - rate * decay = .95, and Adam's part is 0.
    for old, new in zip(before, model.parameters(), strict=True):
        expected = 0.95 * old if old.dim() > 1 else old
        torch.testing.assert_close(new.detach(), expected)


def test_without_a_decay_an_optimiser_has_one_group():
    assert len(parameter_groups(torch.nn.Linear(3, 2), 0.1, 0.0)) == 1


def test_a_warm_up_needs_a_schedule_that_has_one():
    with pytest.raises(ConfigError, match=r"schedule_warmup: is 3, must be 0 with schedule = con"):
        build_config({"schedule_warmup": 3})
    with pytest.raises(ConfigError, match="policy.schedule: is called schedule"):
        build_config({"policy.schedule": "linear"})


def test_a_resumed_schedule_goes_on_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--schedule", "cosine", "--schedule-warmup", "1", "--weight-decay", "0.1"]
    assert main([*SMALL, *words, "--steps", "4", "--name", "straight"]) == 0
    assert main([*SMALL, *words, "--steps", "4", "--name", "cut", "--checkpoint-keep", "9"]) == 0

    # As a kill after the second step leaves it.
    cut = tmp_path / "runs/cut"
    for path in [cut / "summary.json", *(cut / f"checkpoints/step-00000{i}" for i in (3, 4))]:
        path.rename(tmp_path / path.name)
    assert main(["train", "--resume", str(cut)]) == 0

    straight = tmp_path / "runs/straight"
    for name in ("policy/model.safetensors", "critic.safetensors"):
        assert (cut / name).read_bytes() == (straight / name).read_bytes()
    rates = [json.loads(line) for line in (cut / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("learning_rate/policy") for row in rates] == [None, 0.0, 1.5e-4, 7.5e-5]
