"""TRL: a GRPOTrainer whose advantages come from a value flow, token by token.

    trainer = ValueFlowGRPOTrainer(model, reward_funcs, args=GRPOConfig(...), train_dataset=data,
                                   value_flow=ValueFlowConfig(return_range=(0.0, 1.0)))

GRPO gives every token of an answer one advantage. Here a critic, a copy of the policy's trunk and a
value flow, is trained on each batch of answers, and a token's advantage is GAE of its values. For
TRL 1.13 to 1.16; importing this module imports trl.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor
from transformers import AutoModel, PreTrainedModel, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOTrainer

from dfpo.integrations.token_critic import (
    AnswerBatch,
    TokenCritic,
    ValueFlowConfig,
    fit,
    token_targets,
    whiten,
)

__all__ = ["ValueFlowConfig", "ValueFlowGRPOTrainer"]

# What this needs of the batch that TRL makes.
KEYS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")
WEIGHTS, STATE = "critic.safetensors", "critic_state.pt"


class ValueFlowGRPOTrainer(GRPOTrainer):
    """GRPOTrainer with advantages [B, T]; takes its arguments, and

    Args:
        value_flow: settings of the critic.
        trunk: the critic's transformer, without a head; default a copy of the policy's.

    Of TRL's methods it overrides one. An answer without a reward teaches neither model.
    Checkpoints hold the critic, its optimiser and its draws, and ``train`` resumes them.

    Raises:
        ValueError: for settings of TRL's that need one advantage an answer.
        RuntimeError: where TRL's batch or log is not what this was written for.
    """

    def __init__(
        self,
        *args: Any,
        value_flow: ValueFlowConfig | None = None,
        trunk: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        _check_settings(self)
        self.value_flow = config = value_flow or ValueFlowConfig()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.critic = TokenCritic(trunk or _copy_trunk(self), config)

        self.critic.to(self.accelerator.device)
        self.critic_optimizer = torch.optim.AdamW(
            self.critic.parameters(), lr=config.learning_rate, weight_decay=0.0
        )
        # Every process draws for its own answers.
        seed = config.seed + self.accelerator.process_index
        self.critic_draws = torch.Generator(self.accelerator.device).manual_seed(seed)
        self.critic_batches = 0
        self.add_callback(_SaveCritic(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        if folder:
            load_model(self.critic, str(Path(folder) / WEIGHTS))
            state = torch.load(Path(folder) / STATE, weights_only=True)
            self.critic_optimizer.load_state_dict(state["optimizer"])
            self.critic_draws.set_state(state["draws"])
            self.critic_batches = state["batches"]

        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch with advantages [B, T]; in evaluation, which trains nothing, as TRL's."""
        batch = super()._generate_and_score_completions(inputs)
        missing = [key for key in KEYS if key not in batch]
        if missing:
            raise RuntimeError(f"trl: its batch lacks {', '.join(missing)}; use TRL 1.13 to 1.16")
        if not self.model.training:
            return batch
        rewards = _logged_rewards(self, len(batch["advantages"]))
        answers = _answers(batch, rewards)
        size, config = self.args.per_device_train_batch_size, self.value_flow
        quantiles = self.critic.values(answers, size, self.accelerator)
        rows = torch.arange(len(rewards), device=rewards.device)
        advantages, *targets = token_targets(
            rewards.nan_to_num(),
            quantiles,
            answers.mask,
            rows + len(rows) * self.accelerator.process_index,
            config,
            config.seed + self.critic_batches,
        )

        loss = fit(
            self.critic, self.critic_optimizer, answers,
            drawn=targets[0], returns=targets[1], config=config, size=size,
            draws=self.critic_draws, accelerator=self.accelerator,
        )  # fmt: skip
        warm = self.critic_batches >= config.warmup_batches
        self.critic_batches += 1
        batch["advantages"] = whiten(advantages, answers.mask, self.accelerator) * warm
        spread = quantiles.std(-1, correction=0)[answers.mask].mean()

        for name, value in (("loss", loss), ("spread", spread.nan_to_num().item())):
            self._metrics["train"][f"value_flow/{name}"].append(value)

        return batch


class _SaveCritic(TrainerCallback):
    """Puts the critic into each checkpoint that transformers writes."""

    def __init__(self, trainer: ValueFlowGRPOTrainer) -> None:
        self.trainer = trainer

    def on_save(self, args, state, control, **kwargs) -> None:
        if args.should_save:
            folder, trainer = Path(args.output_dir, f"checkpoint-{state.global_step}"), self.trainer
            save_model(trainer.critic, str(folder / WEIGHTS))
            more = {
                "optimizer": trainer.critic_optimizer.state_dict(),
                "draws": trainer.critic_draws.get_state(),
                "batches": trainer.critic_batches,
            }
            torch.save(more, folder / STATE)


def _check_settings(trainer: ValueFlowGRPOTrainer) -> None:
    """What in TRL takes one advantage an answer."""
    args = trainer.args
    if args.loss_type == "vespo":
        raise ValueError("loss_type: is 'vespo', must be another: it weights whole answers")
    if args.off_policy_mask_threshold is not None:
        raise ValueError("off_policy_mask_threshold: must be None: it drops whole answers")
    if args.use_liger_kernel and hasattr(trainer, "compute_liger_loss"):
        raise ValueError("use_liger_kernel: is True, must be False with this version of TRL")


def _copy_trunk(trainer: ValueFlowGRPOTrainer) -> PreTrainedModel:
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(policy, "peft_config"):
        raise ValueError("trunk: is None, must be a model where the policy has adapters")
    trunk = AutoModel.from_config(policy.config)
    trunk.load_state_dict(policy.base_model.state_dict())
    return trunk


def _answers(batch: dict[str, Tensor], rewards: Tensor) -> AnswerBatch:
    """Tokens count that the policy wrote, in answers that have a reward."""
    mask = batch["completion_mask"] * batch.get("tool_mask", 1) != 0
    return AnswerBatch(
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
        mask & ~rewards.isnan().unsqueeze(-1),
    )


def _logged_rewards(trainer: ValueFlowGRPOTrainer, count: int) -> Tensor:  # [B]
    """Weighted sums of this process's rewards, NaN where no function gave one. TRL's batch has them
    only relative to their group, so they come from its log of all processes' last batch."""
    logs = [list(trainer._logs["rewards"][name]) for name in trainer.reward_func_names]
    sizes, total = [len(log) for log in logs], count * trainer.accelerator.num_processes
    if any(size != total for size in sizes):
        raise RuntimeError(f"trl: its logs of rewards have {sizes} of the last {total}, must agree")
    scores = torch.tensor(logs, device=trainer.accelerator.device).T  # [B, functions]
    rewards = (scores * trainer.reward_weights.to(scores)).nansum(-1)
    rewards = rewards.masked_fill(scores.isnan().all(-1), torch.nan)
    low, high = trainer.value_flow.return_range
    if ((rewards < low) | (rewards > high)).any():
        warnings.warn(f"return_range: is {(low, high)}, but some rewards are outside", stacklevel=2)

    return rewards[count * trainer.accelerator.process_index :][:count]
