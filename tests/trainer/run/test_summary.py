"""What a run says of itself, by hand."""

from types import SimpleNamespace

import pytest

from dfpo.config import build_config
from dfpo.run import summary
from dfpo.run.progress import Progress


def test_a_slow_checkpoint_is_worth_a_word():
    """A quarter of the steps between two: of four steps of 2 s that is 2 s."""
    config = build_config({"checkpoint_every": 4})
    assert summary.slow_checkpoint(1.9, {"perf/seconds": 2.0}, config) is None
    said = summary.slow_checkpoint(2.1, {"perf/seconds": 2.0}, config)
    assert said.startswith("a checkpoint takes 2.1 s, a step 2.0 s: --checkpoint-every 16")


def test_tokens_per_second_are_of_the_steps_alone():
    records = [{"tokens": 10, "perf/seconds": 1.0}, {"tokens": 50, "perf/seconds": 3.0}]
    assert summary.tokens_per_second(records) == 15.0
    assert summary.tokens_per_second([]) == 0.0


def test_the_bar_shows_what_there_is():
    config = build_config({"eval.every": 1, "eval.metric": "eval/id"})
    progress = Progress(unscored=2, invalid=3, problem="nan")
    record = {"reward/noisy": 0.25, "reward/clean": None, "kl": 0.0123456, "eval/id": 0.5}
    assert summary.headline(record, progress, config) == {
        "reward": "0.25", "kl": "0.0123", "eval/id": "0.500", "unscored": "2", "invalid": "3 (nan)",
    }  # fmt: skip
    assert summary.headline({}, Progress(), config) == {}


class Tiny(SimpleNamespace):
    """A model, as far as a line names it."""


def setup_of(settings):
    policy = Tiny(num_parameters=lambda: 1_500_000, device="cpu")
    source = SimpleNamespace(metric="accuracy")
    return SimpleNamespace(
        run="runs/a", config=build_config(settings), policy=policy, source=source
    )


@pytest.mark.parametrize(
    ("settings", "step", "end"),
    [
        ({"reward.low": 0, "reward.high": 1}, 0, "noise none"),
        ({"reward.low": 0, "reward.high": 5}, 0, "noise none, rewards scaled by [0, 5]"),
        ({"reward.space": "cdf"}, 0, "noise none, rewards through cdf"),
        ({"reward.low": 0, "reward.high": 1}, 7, "noise none; continues after 7 of 60 steps"),
    ],
)
def test_the_opening_line(settings, step, end):
    setup = setup_of({"algorithm": "ppo"} | settings)
    said = summary.describe_start(setup, Progress(step=step))
    assert said == f"runs/a: ppo, Tiny of 1.50 M parameters on cpu, {end}"


def test_the_summary_averages_tenths_and_domains():
    """Twenty steps of clean reward 0, .05, ...: the first two, the last two; one has no reward."""
    cell = {"prompts": 4, "sampled": 0.25, "sampled_se": 0.3, "greedy": 1.0, "greedy_se": 0.0}
    before = {"math": {"id": cell}, "own": {"id": cell | {"sampled": 0.75, "sampled_se": 0.4}}}
    records = [{"reward/clean": 0.05 * i, "tokens": 2, "perf/seconds": 1.0} for i in range(20)]
    records.append({"reward/clean": None, "tokens": 2, "perf/seconds": 1.0})
    progress = Progress(step=21, tokens=42, before=before)
    found = summary.run_summary(setup_of({}), progress, before, records)
    # Errors of independent domains: sqrt(.3^2 + .4^2) / 2.
    assert found["before"]["id"] == 0.5 and found["before"]["id_se"] == pytest.approx(0.25)
    assert found["training"]["reward_first_tenth"] == pytest.approx(0.025)
    assert found["training"]["reward_last_tenth"] == pytest.approx(0.925)
    assert found["training"]["tokens_per_second"] == 2.0
    assert found["domains"]["math"] == {"before": before["math"], "after": before["math"]}
    assert "best" not in found["training"]
