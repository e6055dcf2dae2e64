"""The engine and the trainer of verl's critic as a distribution, for verl's own registries."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
from torch import Tensor, nn

from dfpo.integrations.verl_critic import make_score, read_quantiles, value_loss
from dfpo.integrations.verl_settings import Settings

TRAINER_MODE = "dfpo_sync"
# Vendors whose device verl calls cuda; a class registered for a vendor wins over verl's own.
VENDORS = ["nvidia", "amd"]
BACKENDS = ["fsdp", "fsdp2"]


def engine_class(settings: Settings) -> type:
    """verl's FSDP value engine with another score, whose last axis is kept."""
    from verl.utils import tensordict_utils
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithValueHead

    class DistributionEngine(FSDPEngineWithValueHead):
        def _build_module(self) -> nn.Module:
            if self._is_lora:
                raise ValueError("critic.model.lora_rank: is above 0, must be 0 (a frozen score)")
            module = super()._build_module()
            if not hasattr(module, "score"):
                raise ValueError(
                    f"critic.model.path: is a {type(module).__name__}, must be a model whose "
                    "...ForTokenClassification has a module `score`"
                )

            score = make_score(module.config.get_text_config().hidden_size, settings)
            module.score = score.to(module.dtype)
            module.config.num_labels = settings.num_quantiles
            return module

        def prepare_model_outputs(
            self, output: Any, output_args: dict, micro_batch: Any, logits_processor_func: Any
        ) -> dict[str, Tensor]:
            offsets = micro_batch["input_ids"].offsets()
            packed = tensordict_utils.get_non_tensor_data(
                micro_batch, key="use_remove_padding", default=True
            )

            if packed:
                scores = self._gather_and_unpad_packed(
                    output.logits.squeeze(0), output_args["pad_size"]
                )
            else:
                column = torch.arange(output.logits.shape[1], device=offsets.device)
                scores = output.logits[column < offsets.diff().unsqueeze(-1)]

            # The loss takes the scores; without one verl asks for values.
            if logits_processor_func is None:
                scores = read_quantiles(scores, settings)
            return {"values": torch.nested.nested_tensor_from_jagged(scores, offsets)}

    return DistributionEngine


def trainer_class(settings: Settings) -> type:
    """verl's synchronous trainer with our value loss."""
    from omegaconf import open_dict
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    class DistributionTrainerSync(PPOTrainerSync):
        def __init__(self, config: Any) -> None:
            critic = config.critic
            if critic.strategy not in BACKENDS:
                raise ValueError(
                    f"critic.strategy: is {critic.strategy!r}, must be one of "
                    f"{', '.join(BACKENDS)} (or DFPO_VERL=1 for a scalar critic)"
                )

            if settings.critic == "flow" and critic.loss_agg_mode != "token-mean":
                raise ValueError(
                    f"critic.loss_agg_mode: is {critic.loss_agg_mode!r}, must be 'token-mean': the "
                    "value flow's loss is a mean over tokens"
                )

            # verl picks its replay buffer and more by comparing the mode with "sync".
            with open_dict(config):
                config.trainer.v1.trainer_mode = "sync"

            super().__init__(config)
            if not self.use_critic:
                raise ValueError("critic.enable: is false, must be true (adv_estimator=gae)")

        def _setup(self) -> None:
            super()._setup()
            critic = self.config.critic
            loss = functools.partial(
                value_loss, loss_agg_mode=critic.loss_agg_mode,
                loss_scale_factor=critic.loss_scale_factor, settings=settings,
            )  # fmt: skip
            self.critic_wg.set_loss_fn(loss)

    return DistributionTrainerSync


def register(settings: Settings, undo: contextlib.ExitStack) -> None:
    """Engine and trainer into verl's registries; ``undo`` takes them out."""
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, register_trainer
    from verl.workers.engine import EngineRegistry

    EngineRegistry.register("value_model", BACKENDS, device="cuda", vendor=VENDORS)(
        engine_class(settings)
    )
    for backend in BACKENDS:
        for vendor in VENDORS:
            undo.callback(EngineRegistry._engines["value_model"][backend].pop, ("cuda", vendor))

    register_trainer(TRAINER_MODE)(trainer_class(settings))
    undo.callback(TRAINER_REGISTRY.pop, TRAINER_MODE)
