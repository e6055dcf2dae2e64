"""The verl adapter without verl: hand-derived numbers, settings, patching, the score's packing.

What a stand-in of verl does here is verl's formula written anew; test_verl.py has verl itself.
"""

import importlib
import math
import subprocess
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
import torch
from integrations.stubs.masked_rollouts import GAMMA, LAM, gae_without_masked, rollouts
from torch.testing import assert_close

from dfpo.integrations import verl as adapter
from dfpo.integrations import verl_critic
from dfpo_kernels import distributional_gae
from dfpo_kernels.nn import ValueFlowHead

MODULES = [
    "verl", "verl.utils", "verl.utils.torch_functional", "verl.trainer", "verl.trainer.ppo",
    "verl.trainer.ppo.core_algos", "verl.trainer.ppo.metric_utils", "verl.trainer.ppo.ray_trainer",
    "verl.trainer.ppo.v1", "verl.trainer.ppo.v1.trainer_base",
]  # fmt: skip


def whiten(values, mask):
    """Mean 0 and variance 1 over the mask, the variance with Bessel's correction."""
    kept = values[mask != 0]
    return (values - kept.mean()) / (kept.var() + 1e-8).sqrt()


@pytest.fixture
def core_algos(monkeypatch):
    for name in MODULES:
        module = ModuleType(name)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    sys.modules["verl"].__version__ = "0"
    sys.modules["verl.utils.torch_functional"].masked_whiten = lambda values, mask: "verl's"
    core = sys.modules["verl.trainer.ppo.core_algos"]
    core.compute_gae_advantage_return = lambda **_: "verl's"
    core.ADV_ESTIMATOR_REGISTRY = {"gae": core.compute_gae_advantage_return}
    for name in MODULES[-4:]:
        sys.modules[name].compute_data_metrics = lambda batch, use_critic: batch.batch.sums()
    yield core
    adapter.unpatch()


# Two tokens of an answer with a tool's token between: reward, value, mask.
REWARDS, VALUES, TOOL = [[1.0, 7.0, 4.0]], [[3.0, 9.0, 2.0]], [[1, 0, 1]]


def test_a_tool_token_by_hand(core_algos):
    # gamma = lam = .5. Token 2: A = 4 - 2 = 2. The tool's token is no step and shows that A. Token
    # 0: delta = 1 + .5 * 2 - 3 = -1, A = -1 + .25 * 2 = -.5. Returns A + value. Whitened over
    # tokens 0 and 2: mean .75, variance 2 * 1.25^2 / 1 = 3.125, so -.7071 and .7071.
    advantages, returns = adapter.gae_advantage_return(
        torch.tensor(REWARDS), torch.tensor(VALUES), torch.tensor(TOOL), 0.5, 0.5
    )
    half = math.sqrt(0.5)
    assert_close(advantages, torch.tensor([[-half, half, half]]))
    assert returns.tolist() == [[2.5, 11.0, 4.0]]


@pytest.mark.parametrize(
    ("mode", "advantages"),
    # zero: the tool's token is a step of reward and value 0. A = 2; 0 + .5 * 2 - 0 + .25 * 2 = 1.5;
    # 1 + .5 * 0 - 3 + .25 * 1.5 = -1.625. none: it is a token like any other, so what the tool
    # wrote is rewarded and valued. A = 2; 7 + .5 * 2 - 9 + .25 * 2 = -.5; 1 + .5 * 9 - 3 +
    # .25 * -.5 = 2.375: the advantage of the first token has the other sign.
    [("carry", [-0.5, 2.0, 2.0]), ("zero", [-1.625, 1.5, 2.0]), ("none", [2.375, -0.5, 2.0])],
)
def test_what_mask_modes_make_of_it(mode, advantages):
    found, _ = distributional_gae(
        torch.tensor(REWARDS), torch.tensor(VALUES).unsqueeze(-1), torch.tensor(TOOL),
        gamma=0.5, lam=0.5, mask_mode=mode,
    )  # fmt: skip
    assert found.flatten().tolist() == advantages


@pytest.mark.parametrize("settings", [{}, {"target_lam": 1.0}, {"length_alpha": 0.5}])
def test_is_gae_without_the_masked_tokens(core_algos, settings):
    rewards, values, mask = rollouts()
    advantages, returns = adapter.gae_advantage_return(
        rewards, values, mask, GAMMA, LAM, settings=adapter.Settings(**settings)
    )
    lam = LAM
    if "length_alpha" in settings:
        # 1 - 1 / max(tokens / 2, 1): 5, 6, 9, 4, 0 and 1 tokens
        lam = torch.tensor([1 - 2 / 5, 1 - 2 / 6, 1 - 2 / 9, 1 - 2 / 4, 0.0, 0.0])
    expected = gae_without_masked(rewards, values, mask, GAMMA, lam)
    assert_close(advantages[mask != 0].double(), whiten(expected, mask)[mask != 0],
                 atol=1e-5, rtol=1e-5)  # fmt: skip
    traced = gae_without_masked(rewards, values, mask, GAMMA, settings.get("target_lam", LAM))
    assert_close(returns[mask != 0].double(), (traced + values)[mask != 0], atol=1e-5, rtol=1e-5)


def test_quantiles_give_the_advantage_of_their_mean(core_algos):
    rewards, values, mask = rollouts(num_quantiles=8)
    advantages, returns = adapter.gae_advantage_return(rewards, values, mask, GAMMA, LAM)
    expected = gae_without_masked(rewards, values.mean(-1), mask, GAMMA, LAM)
    assert_close(advantages[mask != 0].double(), whiten(expected, mask)[mask != 0],
                 atol=1e-5, rtol=1e-5)  # fmt: skip
    assert returns.shape == values.shape
    # The same batch, the same draws; another one, others.
    again = adapter.gae_advantage_return(rewards, values, mask, GAMMA, LAM)[1]
    assert torch.equal(returns, again)
    # Every sample follows the values some steps on and then bootstraps: with lam = 1 none does.
    sums = adapter.gae_advantage_return(rewards, values, mask, 1.0, 1.0)[1]
    kept = rewards[2].flip(0).cumsum(0).flip(0)
    assert_close(sums[2], kept.unsqueeze(-1).expand(-1, 8))
    # With lam = 0 all bootstrap at once: r + the next token's values.
    steps = adapter.gae_advantage_return(rewards, values, mask, 1.0, 0.0)[1]
    assert_close(steps[2, :-1], rewards[2, :-1, None] + values[2, 1:])


def test_too_few_tokens_are_left_to_verl(core_algos):
    # It raises on none and on one; whatever it does is done.
    rewards, values, mask = (x[4:] for x in rollouts())  # a row of none, and one of one token
    assert adapter.gae_advantage_return(rewards, values, mask, GAMMA, LAM)[0] == "verl's"


def test_rows_padded_further_than_the_mask(core_algos):
    rewards, values, mask = rollouts(num_quantiles=3)
    longer = torch.nn.functional.pad(values, (0, 0, 0, 4), value=5.0)
    for one, other in zip(
        adapter.gae_advantage_return(rewards, longer, mask, GAMMA, LAM),
        adapter.gae_advantage_return(rewards, values, mask, GAMMA, LAM),
        strict=True,
    ):
        assert torch.equal(one, other)


class Fields(dict):
    """The little that is used of a TensorDict."""

    def clone(self, recurse):
        assert not recurse
        return Fields(self)

    def sums(self):
        return {name: float(self[name].sum()) for name in ("values", "returns")}


@dataclass
class Batch:
    batch: Fields


def test_metrics_are_those_of_the_mean(core_algos):
    # Two tokens with quantiles (0, 2) and (1, 5): means 1 and 3, spreads 1 and 2; the third is
    # masked. Returns likewise.
    values = torch.tensor([[[0.0, 2.0], [1.0, 5.0], [9.0, 99.0]]])
    batch = Batch(
        Fields(values=values, returns=values + 1, response_mask=torch.tensor([[1, 1, 0]]))
    )
    adapter.patch()
    compute = sys.modules["verl.trainer.ppo.v1.trainer_base"].compute_data_metrics
    means = 1.0 + 3.0 + 54.0
    assert compute(batch=batch, use_critic=True) == {
        "values": means, "returns": means + 3, "critic/values/spread": 1.5
    }  # fmt: skip
    assert batch.batch["values"].shape == (1, 3, 2)  # the batch goes on to the critic
    flat = Batch(Fields(values=values[..., 0], returns=values[..., 1]))
    assert compute(batch=flat, use_critic=True) == {"values": 10.0, "returns": 106.0}


def test_patch_and_unpatch(core_algos, capsys):
    own = core_algos.compute_gae_advantage_return
    adapter.patch(adapter.Settings(target_lam=0.5))
    assert "GAE by distributional_gae" in capsys.readouterr().out
    first = core_algos.compute_gae_advantage_return
    assert first.keywords["settings"].target_lam == 0.5
    adapter.patch()
    found = core_algos.compute_gae_advantage_return
    assert found.keywords["settings"] == adapter.Settings()
    assert core_algos.ADV_ESTIMATOR_REGISTRY["gae"] is found
    adapter.unpatch()
    adapter.unpatch()
    assert core_algos.compute_gae_advantage_return is own
    assert core_algos.ADV_ESTIMATOR_REGISTRY["gae"] is own


@pytest.mark.parametrize(("text", "patched"), [(None, False), ("", False), ("0", False),
                                               ("1", True), ("target_lam=1", True)])  # fmt: skip
def test_plugin_acts_where_the_variable_is_set(core_algos, monkeypatch, text, patched):
    own = core_algos.compute_gae_advantage_return
    monkeypatch.delenv(adapter.VARIABLE, raising=False)
    if text is not None:
        monkeypatch.setenv(adapter.VARIABLE, text)
    monkeypatch.delitem(sys.modules, "dfpo.integrations.verl_plugin", raising=False)
    importlib.import_module("dfpo.integrations.verl_plugin")
    assert (core_algos.compute_gae_advantage_return is not own) == patched


def test_plugin_shows_a_mistake(core_algos, monkeypatch, capsys):
    monkeypatch.setenv(adapter.VARIABLE, "quantiles=8")
    monkeypatch.delitem(sys.modules, "dfpo.integrations.verl_plugin", raising=False)
    with pytest.raises(ValueError, match="DFPO_VERL: has 'quantiles=8'"):
        importlib.import_module("dfpo.integrations.verl_plugin")
    assert "DFPO_VERL" in capsys.readouterr().err


def test_settings_from_text():
    text = "critic=flow, num_quantiles=16,return_low=-1,target_lam=0.9"
    found = adapter.parse_settings(text)
    assert found == adapter.Settings("flow", 16, return_low=-1.0, target_lam=0.9)
    assert adapter.parse_settings("1") == adapter.Settings()
    for text, message in [
        ("critic=big", "critic: is 'big', must be one of scalar, quantile, flow"),
        ("num_quantiles=2.5", "DFPO_VERL: num_quantiles is '2.5', must be int"),
        ("return_low=1", "return_low: is 1.0, must be below return_high 1.0"),
        ("length_alpha=-1", "length_alpha: is -1.0, must be 0 or above"),
        ("yes", "DFPO_VERL: has 'yes', must be 1 or name=value pairs"),
    ]:
        with pytest.raises(ValueError, match=message):
            adapter.parse_settings(text)


FLOW = adapter.Settings(critic="flow", num_quantiles=8, width=6, return_low=-1.0)


def make_flow_score():
    torch.manual_seed(0)
    score = verl_critic.FlowScore(12, FLOW)
    torch.nn.init.normal_(score.head.mean.weight)
    torch.nn.init.normal_(score.head.gain.weight)
    return score


def test_flow_score_holds_the_whole_head():
    score = make_flow_score()
    hidden = torch.randn(3, 5, 12)
    found = score(hidden)
    assert found.shape == (3, 5, 5 * 6 + 2)
    assert torch.equal(verl_critic.read_quantiles(found, FLOW), score.head(hidden))
    # As the head of the project's own trainer, mean and scale of the range [-1, 1].
    assert (score.head.return_mean, score.head.return_scale) == (0.0, 1.0)


def test_flow_loss_and_gradients_are_the_heads():
    score = make_flow_score()
    hidden, targets = torch.randn(3, 5, 12), torch.rand(3, 5, 8)
    mask = torch.tensor([[1, 1, 0, 1, 1], [0, 0, 1, 1, 0], [1, 1, 1, 1, 1]])
    gradients = []
    for loss_of in (
        lambda: score.head.loss(hidden, targets, mask),
        lambda: verl_critic.flow_reader(FLOW, hidden.device).loss(score(hidden), targets, mask),
    ):
        torch.manual_seed(5)
        loss, _ = loss_of()
        gradients.append((loss, *torch.autograd.grad(loss, list(score.parameters()))))
    assert len(gradients[0]) == 1 + len(list(ValueFlowHead(12, 8, 6).parameters()))
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other)


def test_quantile_score_starts_at_the_range():
    # Quantiles .5 +- .5 on two levels: the normal grid of two, rescaled to variance 1, is -1, 1.
    settings = adapter.Settings(critic="quantile", num_quantiles=2)
    score = verl_critic.make_score(7, settings)
    assert_close(score(torch.randn(4, 7)), torch.tensor([0.0, 1.0]).expand(4, 2))


def test_no_trainer_is_imported_before_it_is_asked_for():
    code = (
        "import sys, dfpo, dfpo_kernels\n"
        "from dfpo.integrations import nemo_rl, openrlhf, verl, verl_critic, verl_plugin\n"
        "from dfpo.integrations import verl_registry\n"
        "print([m for m in ('verl', 'openrlhf', 'nemo_rl', 'ray', 'tensordict', 'omegaconf')"
        " if m in sys.modules])"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == "[]"


def test_entry_point_names_the_plugin():
    tomllib = pytest.importorskip("tomllib")
    path = SimpleNamespace(root=__file__.rpartition("tests")[0]).root + "pyproject.toml"
    with open(path, "rb") as file:
        groups = tomllib.load(file)["project"]["entry-points"]
    assert groups["verl.plugins"] == {"dfpo": "dfpo.integrations.verl_plugin"}
    assert importlib.util.find_spec("dfpo.integrations.verl_plugin")
