"""torchrl's own estimators and losses beside ours, on torchrl as installed."""

import pytest
import torch
from torch import nn

pytest.importorskip("torchrl", reason="torchrl is not installed: make test-integrations")

from tensordict import TensorDict  # noqa: E402
from tensordict.nn import ProbabilisticTensorDictModule as Sampler  # noqa: E402
from tensordict.nn import ProbabilisticTensorDictSequential as Actor  # noqa: E402
from tensordict.nn import TensorDictModule  # noqa: E402
from torchrl.objectives import ClipPPOLoss  # noqa: E402
from torchrl.objectives.value import GAE  # noqa: E402
from torchrl.objectives.value.functional import (  # noqa: E402
    generalized_advantage_estimate,
    vec_generalized_advantage_estimate,
)

from dfpo.integrations.torchrl import (  # noqa: E402
    DistributionalGAE,
    QuantilePPOLoss,
    distributional_advantage_estimate,
)

SHAPE = (3, 2, 25)  # two batch axes and time


def make_signals(num_quantiles, seed=0):
    """Values, separate next values, reward, done and terminated: all four pairs of the flags."""
    g = torch.Generator().manual_seed(seed)
    value, following = torch.randn(2, *SHAPE, num_quantiles, generator=g, dtype=torch.float64)
    reward = torch.randn(*SHAPE, 1, generator=g, dtype=torch.float64)
    done, terminated = torch.rand(2, *SHAPE, 1, generator=g) < 0.2
    return value, following, reward, done, terminated


def make_data(num_quantiles, observations=4, seed=0):
    value, following, reward, done, terminated = make_signals(num_quantiles, seed)
    done = done | terminated
    g = torch.Generator().manual_seed(seed + 1)
    x, next_x = torch.randn(2, *SHAPE, observations, generator=g)
    following = {
        "reward": reward.float(), "done": done, "terminated": terminated, "observation": next_x,
        "state_value": following.float(),
    }  # fmt: skip
    data = {"observation": x, "state_value": value.float(), "next": following}
    return TensorDict(data, SHAPE, names=[None, None, "time"])


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual.double(), expected.double(), atol=tolerance, rtol=tolerance)


# The vectorised form fails at lmbda = 0 (an IndexError in torchrl 0.14.1).
@pytest.mark.parametrize(
    ("oracle", "gamma", "lmbda"),
    [("loop", 0.97, 0.9), ("loop", 1.0, 1.0), ("loop", 0.9, 0.0), ("vectorised", 0.97, 0.9),
     ("vectorised", 1.0, 1.0)],
)  # fmt: skip
def test_one_quantile_is_torchrls_own(oracle, gamma, lmbda):
    signals = make_signals(1)
    estimate = {"loop": generalized_advantage_estimate,
                "vectorised": vec_generalized_advantage_estimate}[oracle]  # fmt: skip
    expected = estimate(gamma, lmbda, *signals)
    ours = distributional_advantage_estimate(gamma, lmbda, *signals)
    single = [x.float() if x.is_floating_point() else x for x in signals]
    kernel = distributional_advantage_estimate(gamma, lmbda, *single)
    for one, fused, other in zip(ours, kernel, expected, strict=True):
        close(one, other)
        close(fused, other)


def test_each_quantile_is_torchrls_own():
    value, following, reward, done, terminated = make_signals(5)
    ours = distributional_advantage_estimate(0.97, 0.9, value, following, reward, done, terminated)
    wide = [x.expand_as(value) for x in (reward, done, terminated)]
    expected = generalized_advantage_estimate(0.97, 0.9, value, following, *wide)
    for one, other in zip(ours, expected, strict=True):
        close(one, other)


def test_truncation_by_hand():
    # gamma = .5, lam = 1. Step 0 is truncated: its trace is cut, the value after it counts:
    # A = 1 + .5 * 4 - 2 = 1. Step 1 is terminated: A = 3 - 1 = 2. Without `terminated`, step 0
    # loses the value after it: A = 1 - 2 = -1.
    value, following, reward = (
        torch.tensor(x).view(1, 2, 1) for x in ([2.0, 1.0], [4.0, 9.0], [1.0, 3.0])
    )
    done = torch.ones(1, 2, 1, dtype=torch.bool)
    terminated = torch.tensor([False, True]).view(1, 2, 1)
    estimate = distributional_advantage_estimate
    truncated, _ = estimate(0.5, 1.0, value, following, reward, done, terminated)
    assert truncated.flatten().tolist() == [1.0, 2.0]
    plain, _ = estimate(0.5, 1.0, value, following, reward, done)
    assert plain.flatten().tolist() == [-1.0, 2.0]


def test_masks_are_none():
    """torchrl knows no mask: tokens of tools and padding are steps, as under mask_mode="none"; a
    row of padding has advantages too."""
    from dfpo_kernels import distributional_gae

    g = torch.Generator().manual_seed(3)
    # Two turns with a tool's tokens between, padding left and right, no end token, no token.
    mask = torch.tensor(
        [[1, 1, 0, 0, 1, 1], [0, 0, 1, 0, 1, 1], [1, 0, 1, 1, 0, 0], [0] * 6], dtype=torch.bool
    )
    value, reward = torch.randn(2, 4, 6, 1, generator=g)
    following = torch.nn.functional.pad(value[:, 1:], (0, 0, 0, 1))
    done = torch.zeros(4, 6, 1, dtype=torch.bool)
    done[[0, 1, 2], [5, 5, 3]] = True
    expected, _ = generalized_advantage_estimate(0.9, 0.8, value, following, reward, done)
    actual = {
        mode: distributional_gae(
            reward.squeeze(-1), value, mask, gamma=0.9, lam=0.8, mask_mode=mode,
            done=done.squeeze(-1),
        )[0]
        for mode in ("none", "carry", "zero")
    }  # fmt: skip
    close(actual["none"], expected)
    assert (actual["carry"] - expected)[mask].abs().max() > 0.1
    assert (actual["zero"] - expected)[mask].abs().max() > 0.1
    assert expected[3].abs().min() > 0 and actual["carry"][3].abs().max() == 0


@pytest.mark.parametrize("average", [False, True])
def test_the_module_is_torchrls_own(average):
    torch.manual_seed(0)
    network = TensorDictModule(nn.Linear(4, 1), ["observation"], ["state_value"])
    settings = {"gamma": 0.97, "lmbda": 0.9, "average_gae": average}
    for value_network in (network, None):
        expected, actual = make_data(1), make_data(1)
        if value_network is not None:
            expected, actual = (x.exclude("state_value", ("next", "state_value"))
                                for x in (expected, actual))  # fmt: skip
        GAE(value_network=value_network, **settings)(expected)
        DistributionalGAE(value_network=value_network, **settings)(actual)
        for key in ("advantage", "value_target"):
            close(actual[key], expected[key], 2e-5)
        ours = DistributionalGAE(value_network=value_network, **settings).value_estimate(actual)
        close(ours, expected["value_target"], 2e-5)
        assert not actual["advantage"].requires_grad


def test_time_is_where_the_data_say():
    data = make_data(1)
    turned = data.transpose(-1, -2).contiguous()
    assert turned.names[-2] == "time"
    estimator = DistributionalGAE(gamma=0.97, lmbda=0.9, value_network=None)
    estimator(data)
    estimator(turned)
    close(turned["advantage"].transpose(1, 2), data["advantage"])


def test_gradients_are_torchrls_own():
    data = [make_data(1), make_data(1)]
    grads = []
    for estimator, batch in zip((GAE, DistributionalGAE), data, strict=True):
        leaves = [batch["state_value"], batch["next", "state_value"], batch["next", "reward"]]
        for leaf in leaves:
            leaf.requires_grad_()
        estimator(gamma=0.97, lmbda=0.9, value_network=None, differentiable=True)(batch)
        loss = (batch["advantage"].sin() + batch["value_target"].cos()).sum()
        grads.append(torch.autograd.grad(loss, leaves))
    for one, other in zip(*grads, strict=True):
        assert other.abs().max() > 0.1
        close(other, one, 1e-4)


def make_loss(kind, num_quantiles, **settings):
    torch.manual_seed(0)
    policy = TensorDictModule(nn.Linear(4, 2), ["observation"], ["logits"])
    sampler = Sampler(
        ["logits"], ["action"], distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
    )  # fmt: skip
    critic = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, num_quantiles))
    critic = TensorDictModule(critic, ["observation"], ["state_value"])
    actor = Actor(policy, sampler)
    loss = kind(actor, critic, **settings)
    loss.make_value_estimator(DistributionalGAE, gamma=1.0, lmbda=0.95, value_network=critic)
    return loss, actor, critic


def train(kind, steps, **settings):
    """PPO on a bandit whose arm 1 pays 1 with probability .8 and arm 0 with .2."""
    loss, actor, critic = make_loss(kind, 9, entropy_coeff=0.0, **settings)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-2)
    g = torch.Generator().manual_seed(0)
    flag = torch.ones(256, 1, 1, dtype=torch.bool)
    for _ in range(steps):
        data = TensorDict({"observation": torch.randn(256, 1, 4, generator=g)}, (256, 1))
        with torch.no_grad():
            actor(data)
        chance = 0.2 + 0.6 * data["action"].unsqueeze(-1)
        reward = (torch.rand(256, 1, 1, generator=g) < chance).float()
        data["next"] = TensorDict(
            {"reward": reward, "done": flag, "terminated": flag,
             "observation": data["observation"]}, (256, 1),
        )  # fmt: skip
        losses = loss(data)
        total = losses["loss_objective"] + losses["loss_critic"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return data["action"].float().mean(), critic(data)["state_value"].mean((0, 1))


def test_ppo_with_it_learns_the_policy_and_the_distribution_of_its_return():
    torch.manual_seed(0)
    share, quantiles = train(QuantilePPOLoss, 60)
    assert share > 0.9
    # Reward is 1 with probability about .8: quantiles at .056 and .944 are 0 and 1.
    assert quantiles[0] < 0.15 and quantiles[-1] > 0.85
    # What the docstring of QuantilePPOLoss says of a distance.
    _, collapsed = train(ClipPPOLoss, 60, loss_critic_type="l2")
    assert collapsed[-1] - collapsed[0] < 0.3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: DistributionalGAE(gamma=1, lmbda=1, value_network=None, shifted=True),
            "shifted: ",
        ),
        (lambda: make_loss(QuantilePPOLoss, 3, clip_value=0.2), "clip_value: is 0.2"),
    ],
)
def test_what_it_cannot_do_is_said(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_shapes_are_named():
    value, following, reward, done, _ = make_signals(3)
    with pytest.raises(ValueError, match=r"done: has shape \[3, 2, 25\], must be state_value's"):
        distributional_advantage_estimate(0.9, 0.9, value, following, reward, done.squeeze(-1))
