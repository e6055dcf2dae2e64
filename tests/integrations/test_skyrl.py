"""The SkyRL adapter beside SkyRL's own estimator "gae", in its registry and over Ray."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from integrations.stubs.masked_rollouts import GAMMA, LAM
from torch.testing import assert_close

from dfpo.integrations import skyrl as adapter

found = importlib.util.find_spec("skyrl")
if found is None:
    pytest.skip("SkyRL is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def ppo_utils():
    """SkyRL's functions, without what its backends import beside them: engines of JAX, and types
    that Python 3.11 cannot define."""
    backends = ModuleType("skyrl.backends")
    backends.__path__ = [str(Path(found.origin).parent / "backends")]
    sys.modules["skyrl.backends"] = backends
    return importlib.import_module("skyrl.backends.skyrl_train.utils.ppo_utils")


@pytest.fixture
def registered(ppo_utils):
    adapter.register()
    yield ppo_utils
    adapter.unregister()


def batch(dtype=torch.float32):
    """Answers at the right of the tensors; the critic's values stand before them too."""
    g = torch.Generator().manual_seed(2)
    lengths = torch.tensor([7, 3, 1, 9, 5])
    mask = (torch.arange(9) >= 9 - lengths.unsqueeze(-1)).long()
    rewards = torch.where(mask.bool(), torch.randn(5, 9, generator=g), 0.0)
    return {
        "token_level_rewards": rewards.to(dtype), "response_mask": mask,
        "values": torch.randn(5, 9, generator=g).to(dtype), "index": list("aabbc"),
        "config": SimpleNamespace(), "gamma": GAMMA, "lambd": LAM,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_numbers_are_skyrls(registered, dtype):
    """As the trainer asks, by the estimator's name."""
    inputs = batch(dtype)
    ours = registered.compute_advantages_and_returns(adv_estimator="dfpo", **inputs)
    theirs = registered.compute_advantages_and_returns(adv_estimator="gae", **inputs)
    for mine, own in zip(ours, theirs, strict=True):
        assert mine.dtype == own.dtype
        assert_close(mine, own, atol=1e-5, rtol=1e-5)


def test_it_stands_beside_skyrls_own(registered):
    assert {"dfpo", "gae", "grpo"} <= set(registered.AdvantageEstimatorRegistry.list_available())
    # What SkyRL does once more before it validates a configuration.
    registered.repopulate_all_registries()
    assert "dfpo" in registered.AdvantageEstimatorRegistry.list_available()


def test_another_process_is_sent_it(ppo_utils, monkeypatch):
    ray = pytest.importorskip("ray")
    root = str(Path(__file__).parents[2])
    tests = str(Path(__file__).parents[1])
    environment = {"PYTHONPATH": f"{root}:{tests}"}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": environment})
    try:
        adapter.register("dfpo_sent", target_lam=1.0)

        @ray.remote(num_cpus=1)
        def elsewhere(inputs, folder):
            # As SkyRL's trainer does in a process that has registered nothing itself.
            backends = ModuleType("skyrl.backends")
            backends.__path__ = [folder]
            sys.modules["skyrl.backends"] = backends
            name = "skyrl.backends.skyrl_train.utils.ppo_utils"
            theirs = importlib.import_module(name)
            assert "dfpo_sent" not in theirs.AdvantageEstimatorRegistry._functions
            return theirs.compute_advantages_and_returns(adv_estimator="dfpo_sent", **inputs)

        inputs = batch()
        folder = sys.modules["skyrl.backends"].__path__[0]
        there = ray.get(elsewhere.remote(inputs, folder))
        here = adapter.advantages(**inputs, target_lam=1.0)
        assert all(torch.equal(a, b) for a, b in zip(there, here, strict=True))
    finally:
        ppo_utils.AdvantageEstimatorRegistry.reset()
        ray.shutdown()
