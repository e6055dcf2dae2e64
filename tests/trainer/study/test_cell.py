"""What comes of a cell, by hand of a run that is written and not trained."""

import json
import math

import pytest
from small_runs import make_run

from dfpo.study import cell
from dfpo.study.recipe import Cell


def scores(sampled, greedy):
    errors = {"sampled_se": 0.1, "greedy_se": math.nan}
    return {"prompts": 8, "sampled": sampled, "greedy": greedy, **errors}


DOMAINS = {
    "math": {
        "before": {"id": scores(0.8, 0.4), "ood": scores(0.6, 0.2)},
        "after": {"id": scores(0.9, 1.0), "ood": scores(0.7, 0.6)},
    },
    "own": {"before": {"train": scores(0.4, 0.0)}, "after": {"train": scores(0.5, 0.0)}},
}


@pytest.fixture
def finished(tmp_path):
    """Twenty steps of 4 prompts twice; the first 5 do not train the policy, each other one makes
    2 x 3 updates."""
    metrics = [
        {"reward/clean": 0.5, "reward/noisy": 0.1 * i, "kl": None if i == 19 else float(i)}
        | ({"loss/policy": 0.0} if i >= 5 else {})
        for i in range(20)
    ]
    settings = {"rollout.prompts": 4, "rollout.samples": 2, "policy.epochs": 2,
                "policy.minibatches": 3, "steps": 20}  # fmt: skip
    run = make_run(tmp_path / "cells/run", {}, metrics, **settings)
    summary = {
        "metric": "accuracy", "domains": DOMAINS, "training": {"steps": 20, "tokens": 1234},
        "cpu_seconds": 5.0, "seconds": 6.0, "peak_memory_gb": 0.5,
    }  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))
    return Cell("suite", "flip=0.3", "new", 3, settings, {"policy.epochs": 2}, 20, run)


def test_a_result_by_hand(finished):
    found = cell.cell_result(finished)
    assert [found[k] for k in ("domain", "noise", "arm", "seed")] == ["suite", "flip=0.3", "new", 3]
    assert found["settings"] == {"policy.epochs": 2} and found["algorithm"] == "dfpo"
    assert found["base"]["rollout.prompts"] == 4 and "policy.epochs" not in found["base"]
    assert found["curve"] == [0.5] * 20
    # Training prompts count as in domain.
    assert found["after"] == pytest.approx(
        {"id": 0.7, "ood": 0.7, "all": 0.7, "id_greedy": 0.5, "ood_greedy": 0.6,
         "all_greedy": 1.6 / 3}
    )  # fmt: skip
    assert found["before"]["all"] == pytest.approx(0.6) and not found["collapsed"]
    assert found["benchmarks"]["math/ood"]["after"] == 0.7
    assert found["benchmarks"]["math/ood"]["after_greedy_se"] is None, "JSON has no NaN"
    # The last tenth of twenty steps are two; the last two that have a number.
    assert found["training_reward_noisy"] == pytest.approx(1.85) and found["kl"] == 17.5
    assert found["training_reward_area"] == pytest.approx(0.5)
    assert (found["answers"], found["policy_updates"], found["tokens"]) == (160, 90, 1234)
    assert found["cost"] == {"cpu_seconds": 5.0, "seconds": 6.0, "peak_memory_gb": 0.5}


def test_a_benchmark_that_is_not_finite_takes_its_averages_with_it():
    benchmarks = {"a/id": {"after": 0.5, "after_greedy": 0.5}, "a/ood": {"after": None}}
    benchmarks["a/ood"]["after_greedy"] = 1.0
    found = cell.benchmark_means(benchmarks, "after")
    assert math.isnan(found["ood"]) and math.isnan(found["all"]) and found["id"] == 0.5
    assert found["all_greedy"] == 0.75


def test_a_finished_cell_is_not_trained_again(finished, monkeypatch):
    monkeypatch.setattr(cell, "train", lambda *_: pytest.fail("trained"))
    cell.start_or_resume(finished)


def test_a_cell_starts_with_its_settings_and_goes_on_with_those_of_its_run(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(cell, "train", lambda *given: trained.append(given))
    new = Cell("suite", "none", "a", 3, {"seed": 3, "steps": 9}, {}, 9, tmp_path / "cells/new")
    cell.write_settings(new)
    cell.start_or_resume(new)
    ((config,),) = trained
    assert (config.seed, config.steps, config.name) == (3, 9, "new")
    assert config.runs_dir == str(tmp_path / "cells")

    make_run(new.run, {}, [{"reward/clean": 0.5}], steps=12)
    cell.start_or_resume(new)
    config, resumed = trained[1]
    assert (config.steps, resumed) == (12, new.run)


def test_the_version_is_of_the_code(tmp_path, monkeypatch):
    """The package's version and eight digits that change with any of its files."""
    for package in ("dfpo", "dfpo_kernels"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("x = 1")
        monkeypatch.setattr(f"{package}.__file__", str(tmp_path / package / "__init__.py"))
    first = cell.code_version()
    assert cell.code_version() == first and first[:-8] == cell.VERSION[:-8]
    (tmp_path / "dfpo_kernels/a.py").write_text("x = 2")
    assert cell.code_version() != first
