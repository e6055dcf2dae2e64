"""The critic of a distribution in the installed verl: its loss, engine, configuration, trainer."""

import pickle
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("verl", reason="verl is not installed (make test-integrations)")

from integrations.stubs.verl_batches import (  # noqa: E402
    FLOW,
    PROMPTS,
    QUANTILE,
    RESPONSES,
    nested,
    quantile_batch,
)  # fmt: skip
from verl.trainer.ppo.v1 import trainer_base  # noqa: E402
from verl.utils import tensordict_utils  # noqa: E402
from verl.workers.utils import padding  # noqa: E402

from dfpo.integrations import verl as adapter  # noqa: E402
from dfpo.integrations import verl_critic, verl_registry  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def restored():
    yield
    adapter.unpatch()


def loss_batch(scores, returns, data, tokens):
    """A micro-batch as the engine hands it to the loss."""
    extra = {"dp_size": 2, "batch_num_tokens": tokens, "global_batch_size": 4}
    fields = {key: data[key] for key in ("prompts", "responses", "response_mask", "input_ids")}
    return {"values": scores}, tensordict_utils.get_tensordict(fields | {"returns": returns}, extra)


@pytest.mark.parametrize("settings", [QUANTILE, FLOW], ids=["quantile", "flow"])
def test_value_loss_does_not_depend_on_micro_batches(settings, monkeypatch):
    # Flow times and base noise are drawn per call: the same ones for each token, whatever the batch
    monkeypatch.setattr(torch, "rand", lambda *s, **k: torch.full(torch.Size(s[0])
                        if isinstance(s[0], tuple) else s, 0.5))  # fmt: skip
    channels = 4 if settings is QUANTILE else 5 * FLOW.width + 2
    g = torch.Generator().manual_seed(3)
    data = quantile_batch(channels)
    lengths = data["input_ids"].offsets().diff().tolist()
    scores = [torch.randn(n, channels, generator=g) for n in lengths]
    if settings is FLOW:  # the weights that all tokens share
        for row in scores[1:]:
            row[:, -2 * FLOW.width :] = scores[0][0, -2 * FLOW.width :]
        scores[0][:, -2 * FLOW.width :] = scores[0][0, -2 * FLOW.width :].clone()
    scores = [row.requires_grad_() for row in scores]
    returns = [torch.rand(n, settings.num_quantiles) for n in RESPONSES]
    loss = partial(
        verl_critic.value_loss, loss_agg_mode="token-mean", loss_scale_factor=None,
        settings=settings,
    )  # fmt: skip

    def gradients(parts):
        total = 0.0
        for part in parts:
            rows = tensordict_utils.index_select_tensor_dict(data, part)
            one, metrics = loss(
                *loss_batch(
                    nested([scores[i] for i in part]), nested([returns[i] for i in part]), rows, 14
                )
            )
            assert float(metrics["critic/vf_loss"].aggregate()) == pytest.approx(float(one))
            total = total + one
        return total.detach(), torch.autograd.grad(total, scores)

    whole, split = gradients([[0, 1, 2, 3]]), gradients([[2, 0], [1], [3]])
    assert_close(whole[0], split[0])
    # Tokens of micro-batches have shared weights of their own row; their sum is what is trained.
    width = 2 * FLOW.width if settings is FLOW else 0
    for one, other in zip(whole[1], split[1], strict=True):
        assert_close(one[:, : channels - width], other[:, : channels - width])
    if width:
        summed = [sum(x[:, -width:].sum(0) for x in found[1]) for found in (whole, split)]
        assert_close(*summed)


def test_quantile_loss_by_hand():
    # One token, quantiles 0 and 1, returns .5 and .5, kappa -> pinball: u = .5 and -.5, weights
    # .25 and |.75 - 1| = .25, huber |u| - kappa / 2 = .475: loss .25 * .475 = .11875. Two ranks
    # (dp_size 2), one token in all: times 2.
    settings = adapter.Settings(critic="quantile", num_quantiles=2)
    one = torch.ones(1, dtype=torch.long)
    data = tensordict_utils.get_tensordict(
        {
            "prompts": nested([one]), "responses": nested([one]), "response_mask": nested([one]),
            "returns": nested([torch.full((1, 2), 0.5)]),
        },
        {"dp_size": 2, "batch_num_tokens": 1, "global_batch_size": 1},
    )  # fmt: skip
    # The value of a token comes from the position before it.
    scores = nested([torch.tensor([[0.0, 1.0], [9.0, 9.0]])])
    loss, metrics = verl_critic.value_loss(
        {"values": scores}, data, loss_agg_mode="token-mean", loss_scale_factor=None,
        settings=settings,
    )  # fmt: skip
    assert float(loss) == pytest.approx(2 * 0.11875)
    assert metrics["critic/vpred_mean"] == 0.5
    # What verl's own engine returns: one number a token.
    with pytest.raises(ValueError, match=r"values: have shape \[1, 1\], must be \[B, T, C\]"):
        verl_critic.value_loss(
            {"values": nested([torch.zeros(2)])}, data, loss_agg_mode="token-mean",
            loss_scale_factor=None, settings=settings,
        )  # fmt: skip


def make_engine(settings, monkeypatch):
    """verl's engine on a tiny model, without FSDP and flash attention, which need a GPU."""
    import transformers
    from verl.workers.engine.fsdp import transformer_impl

    config = transformers.Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForTokenClassification.from_config(config)
    monkeypatch.setattr("verl.utils.model.load_valuehead_model", lambda **_: model)
    monkeypatch.setattr(transformer_impl, "get_device_id", lambda: "cpu")
    monkeypatch.setattr(transformer_impl, "get_device_name", lambda: "cpu")
    engine = object.__new__(verl_registry.engine_class(settings))
    engine.__dict__ |= {
        "_is_lora": False, "device_mesh": None, "use_remove_padding": False,
        "ulysses_sequence_parallel_size": 1, "use_ulysses_sp": False, "pad_to_length": 0,
        "_autocast_dtype": torch.float32,
        "engine_config": SimpleNamespace(model_dtype="fp32", forward_only=False),
        "model_config": SimpleNamespace(
            model_type="value_model", hf_config=config, local_path="", trust_remote_code=False,
            use_liger=False, fused_kernel_options=None, use_fused_kernels=False,
            enable_gradient_checkpointing=False,
        ),
    }  # fmt: skip
    engine.get_data_parallel_group = lambda: None
    engine.module = engine._build_module()
    return engine


def micro_batch(use_remove_padding):
    lengths = [p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    data = quantile_batch(2)
    data["position_ids"] = nested([torch.arange(n) for n in lengths])
    settings = {
        "use_remove_padding": use_remove_padding, "temperature": 1.0, "dp_size": 1,
        "batch_num_tokens": sum(RESPONSES), "global_batch_size": 4,
    }  # fmt: skip
    return tensordict_utils.assign_non_tensor(data, **settings)


@pytest.mark.parametrize("settings", [QUANTILE, FLOW], ids=["quantile", "flow"])
def test_engine_infers_and_trains(settings, monkeypatch):
    engine = make_engine(settings, monkeypatch)
    if settings is FLOW:
        # Zero at the start; moved, so that tokens differ.
        torch.nn.init.normal_(engine.module.score.head.mean.weight)
        torch.nn.init.normal_(engine.module.score.head.gain.weight)
    else:
        torch.nn.init.normal_(engine.module.score.weight)
    engine.module.eval()
    found = []
    for packed in (False, True):
        with torch.no_grad():
            _, output = engine.forward_step(micro_batch(packed), None, forward_only=True)
        values = output["model_output"]["values"]
        assert values.shape[::2] == (4, settings.num_quantiles)
        found.append(values.values())
    # Rows of different lengths, padded or packed: the same values.
    assert_close(*found, atol=1e-4, rtol=1e-4)

    returns = nested([torch.full((n, settings.num_quantiles), 0.9) for n in RESPONSES])
    loss_fn = partial(
        verl_critic.value_loss, loss_agg_mode="token-mean", loss_scale_factor=None,
        settings=settings,
    )  # fmt: skip
    optimizer = torch.optim.Adam(engine.module.parameters(), lr=1e-2)
    errors = []
    for _ in range(30):
        data = micro_batch(False)
        data["returns"] = returns
        loss, output = engine.forward_step(data, loss_fn, forward_only=False)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss) and "critic/vf_loss" in output["metrics"]
        with torch.no_grad():
            _, output = engine.forward_step(micro_batch(False), None, forward_only=True)
        values = padding.no_padding_2_padding(output["model_output"]["values"], data)
        kept = values[data["response_mask"].to_padded_tensor(0).bool()]
        errors.append((kept.mean(-1) - 0.9).abs().mean().item())
    assert errors[-1] < 0.4 * errors[0]


def test_engine_says_what_it_cannot_take(monkeypatch):
    engine = make_engine(QUANTILE, monkeypatch)
    engine._is_lora = True
    with pytest.raises(ValueError, match="lora_rank"):
        engine._build_module()
    engine._is_lora = False
    headless = torch.nn.Linear(1, 1)
    monkeypatch.setattr(
        "verl.workers.engine.fsdp.transformer_impl.FSDPEngineWithLMHead._build_module",
        lambda self: headless,
    )
    with pytest.raises(ValueError, match="critic.model.path: is a Linear"):
        engine._build_module()


def recipe():
    """The shipped recipe as `python -m verl.trainer.main_ppo` composes it."""
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "recipes"), version_base=None):
        return compose("verl_value_flow", overrides=["critic.model.path=m", "data.train_files=t",
                       "data.val_files=v", "actor_rollout_ref.model.path=m"])  # fmt: skip


def test_recipe_composes_with_verls_configuration():
    from omegaconf import OmegaConf
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env
    from verl.trainer.ppo.utils import need_critic
    from verl.utils.config import validate_config

    config = recipe()
    assert config.trainer.v1.trainer_mode == "dfpo_sync" and config.trainer.use_v1
    assert config.algorithm.adv_estimator == "gae" and need_critic(config)
    # As verl.trainer.main_ppo.run_ppo merges it.
    env = OmegaConf.merge(get_ppo_ray_runtime_env(config), config.ray_kwargs.ray_init.runtime_env)
    settings = adapter.parse_settings(env.env_vars.DFPO_VERL)
    assert settings.critic == "flow"
    assert env.env_vars.TOKENIZERS_PARALLELISM == "true"  # verl's own are kept
    shipped = str(ROOT / "dfpo/tasks/starting_policies/suite")
    config.critic.model.path = config.actor_rollout_ref.model.path = shipped
    validate_config(config, use_reference_policy=False, use_critic=True)


def test_trainer_sets_our_loss(monkeypatch):
    sent = {}
    monkeypatch.setattr(
        trainer_base.PPOTrainer, "__init__",
        lambda self, config: setattr(self, "config", config) or setattr(self, "use_critic", True),
    )  # fmt: skip
    monkeypatch.setattr(trainer_base.PPOTrainer, "_setup", lambda self: sent.update(setup=True))
    adapter.patch(FLOW)
    config = recipe()
    trainer = trainer_base.get_trainer_cls("dfpo_sync")(config)
    # verl compares the mode with "sync" to choose its replay buffer.
    assert trainer.config.trainer.v1.trainer_mode == "sync"
    trainer.critic_wg = SimpleNamespace(set_loss_fn=lambda fn: sent.update(loss=fn))
    trainer._setup()
    loss = pickle.loads(pickle.dumps(sent["loss"]))
    assert sent["setup"] and loss.func is verl_critic.value_loss
    assert loss.keywords["settings"] == FLOW and loss.keywords["loss_agg_mode"] == "token-mean"
    for key, wrong in {"loss_agg_mode": "seq-mean-token-sum", "strategy": "megatron"}.items():
        config = recipe()
        config.critic[key] = wrong
        with pytest.raises(ValueError, match=f"critic.{key}: is '{wrong}'"):
            trainer_base.get_trainer_cls("dfpo_sync")(config)
