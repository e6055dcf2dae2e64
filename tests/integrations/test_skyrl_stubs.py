"""The SkyRL adapter without SkyRL: hand-derived numbers, a critic's absence, registering."""

import pickle
import sys
from types import ModuleType

import pytest
import torch
from integrations.stubs.masked_rollouts import GAMMA, LAM, gae_without_masked, rollouts
from torch.testing import assert_close

from dfpo.integrations import skyrl as adapter

NAN, INF = float("nan"), float("inf")

# Two answers at the right, as SkyRL has them, whatever stands before.
HAND = {
    "token_level_rewards": torch.tensor([[NAN, 1.0, 4.0], [NAN, INF, 1.0]]),
    "values": torch.tensor([[0.0, 3.0, 2.0], [5.0, NAN, 2.0]]),
    "response_mask": torch.tensor([[0, 1, 1], [0, 0, 1]]),
}
COUNTED = HAND["response_mask"].bool()


def test_two_answers_by_hand():
    # gamma = lam = .5. First: 4 - 2 = 2, then 1 + .5 * 2 - 3 = -1 and -1 + .25 * 2 = -.5.
    # Second: 1 - 2 = -1. Mean 1/6; squares (4/9 + 121/36 + 49/36) / 2 = 31/12.
    found, returns = adapter.advantages(**HAND, gamma=0.5, lambd=0.5)
    expected = (torch.tensor([-0.5, 2.0, -1.0]) - 1 / 6) / (31 / 12) ** 0.5
    assert_close(found[COUNTED], expected, atol=1e-6, rtol=1e-6)
    assert returns[COUNTED].tolist() == [2.5, 4.0, 1.0]


def test_a_lambda_of_its_own_for_the_critic_by_hand():
    # At lam = 1 the first answer's target is -1 + .5 * 2 + 3 = 3; advantages stay as they were.
    found, returns = adapter.advantages(**HAND, gamma=0.5, lambd=0.5, target_lam=1.0)
    same = adapter.advantages(**HAND, gamma=0.5, lambd=0.5)[0]
    assert torch.equal(found[COUNTED], same[COUNTED])
    assert returns[COUNTED].tolist() == [3.0, 4.0, 1.0]


def test_every_token_is_a_step_and_the_mask_whitens():
    rewards, values, mask = rollouts()
    found, returns = adapter.advantages(rewards, mask, values, GAMMA, LAM, index=None, config=None)
    raw = gae_without_masked(rewards, values, torch.ones_like(mask), GAMMA, LAM)
    counted = raw[mask.bool()]
    assert_close(found.double(), (raw - counted.mean()) / counted.std(), atol=1e-5, rtol=1e-5)
    assert_close(returns.double(), raw + values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_tokens_for_a_spread_are_zeros(count):
    mask = torch.zeros(1, 3, dtype=torch.int64)
    mask[:, 3 - count :] = 1
    found, _ = adapter.advantages(torch.ones(1, 3), mask, torch.zeros(1, 3))
    assert found.isfinite().all() and not found[mask.bool()].any()


def test_without_a_critic_the_setting_that_makes_one_is_named():
    mask = torch.ones(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"values: is None.*trainer\.critic\.model\.path"):
        adapter.advantages(torch.zeros(2, 3), mask)


@pytest.fixture
def registry(monkeypatch):
    """The part of SkyRL's registry that is used, with its own error."""

    class AdvantageEstimatorRegistry:
        functions = {}

        @classmethod
        def register(cls, name, function):
            if name in cls.functions:
                raise ValueError(f"advantage estimator '{name}' already registered")
            cls.functions[name] = function

        @classmethod
        def unregister(cls, name):
            del cls.functions[name]

    name = "skyrl"
    for part in ("", ".backends", ".backends.skyrl_train", ".backends.skyrl_train.utils"):
        monkeypatch.setitem(sys.modules, name + part, ModuleType(name + part))
    module = ModuleType("skyrl.backends.skyrl_train.utils.ppo_utils")
    module.AdvantageEstimatorRegistry = AdvantageEstimatorRegistry
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return AdvantageEstimatorRegistry


def test_registering(registry, capsys):
    adapter.register()
    adapter.register("decoupled", target_lam=1.0)
    assert "estimator dfpo by" in capsys.readouterr().out
    with pytest.raises(ValueError, match="already registered"):
        adapter.register()

    # The registry pickles it for other processes, which import it there.
    function = pickle.loads(pickle.dumps(registry.functions["decoupled"]))
    _, returns = function(**HAND, gamma=0.5, lambd=0.5, index=None, grpo_norm_by_std=True)
    assert returns[COUNTED].tolist() == [3.0, 4.0, 1.0]

    adapter.unregister()
    assert list(registry.functions) == ["decoupled"]
