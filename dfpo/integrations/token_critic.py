"""A value-flow critic on a transformers trunk, for trainers that bring none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from dfpo_kernels import distributional_gae, lambda_mixture_targets
from dfpo_kernels.nn import ValueFlowHead


@dataclass(frozen=True)
class ValueFlowConfig:
    """The critic and what is made of its values."""

    return_range: tuple[float, float] = (0.0, 1.0)  # lowest and highest return of an answer
    num_quantiles: int = 32
    learning_rate: float = 1e-4
    epochs: int = 2  # passes over each batch of answers
    warmup_batches: int = 0  # first batches in which the critic alone learns: advantages are 0
    gamma: float = 1.0
    lam: float = 0.95
    mask_mode: str = "carry"  # what tool tokens are, see distributional_gae
    max_grad_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class AnswerBatch:
    """Prompts and answers of B rows, the answers in the last T columns."""

    input_ids: Tensor  # [B, P + T]
    attention_mask: Tensor  # [B, P + T]
    mask: Tensor  # [B, T] bool, tokens that count

    def select(self, rows: Tensor) -> AnswerBatch:
        return AnswerBatch(self.input_ids[rows], self.attention_mask[rows], self.mask[rows])


class TokenCritic(nn.Module):
    """A value flow on the trunk's hidden states before each token of the answer."""

    def __init__(self, trunk: PreTrainedModel, config: ValueFlowConfig) -> None:
        super().__init__()
        low, high = config.return_range
        # AdamW's steps are lost in the rounding of half-precision weights.
        self.trunk = trunk.float()
        self.head = ValueFlowHead(
            trunk.config.get_text_config().hidden_size,
            config.num_quantiles,
            return_mean=(low + high) / 2,
            return_scale=(high - low) / 2,
            return_range=config.return_range,
        )

    def hidden(self, answers: AnswerBatch) -> Tensor:  # [B, T, D]
        states = self.trunk(
            input_ids=answers.input_ids,
            attention_mask=answers.attention_mask,
            position_ids=(answers.attention_mask.cumsum(-1) - 1).clamp_min(0),
        ).last_hidden_state
        return states[:, -answers.mask.shape[1] - 1 : -1]

    @torch.no_grad()
    def values(self, answers: AnswerBatch, size: int, accelerator: Accelerator) -> Tensor:
        """Quantiles before each token [B, T, Q], ``size`` rows at a time."""
        parts = []
        for rows in torch.arange(len(answers.mask)).split(size):
            with accelerator.autocast():
                hidden = self.hidden(answers.select(rows))
            parts.append(self.head(hidden.float()))
        return torch.cat(parts)


def token_targets(
    rewards: Tensor,  # [B]
    quantiles: Tensor,  # [B, T, Q]
    mask: Tensor,  # [B, T] bool
    rows: Tensor,  # [B]
    config: ValueFlowConfig,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:  # [B, T], [B, T, Q], [B, T]
    """Advantages, a mean over quantiles and 0 where masked, and what the critic regresses to:
    draws from the TD(lambda) mixture, and the mean of GAE, which no draw adds to.

    An answer's reward lies on its last token that counts, and nothing follows it. ``rows`` and
    ``seed`` name the draws of ``lambda_mixture_targets``.
    """
    position = torch.arange(mask.shape[1], device=mask.device)
    last = mask & (position == (position * mask).amax(-1, keepdim=True))
    scan = (torch.where(last, rewards.unsqueeze(-1), 0.0), quantiles, mask)
    shared = {"gamma": config.gamma, "lam": config.lam, "mask_mode": config.mask_mode, "done": last}
    advantages, returns = (x.mean(-1) for x in distributional_gae(*scan, **shared))
    drawn = lambda_mixture_targets(*scan, **shared, seed=seed, rows=rows)
    return advantages * mask, drawn, returns


def fit(
    critic: TokenCritic,
    optimizer: torch.optim.Optimizer,
    answers: AnswerBatch,
    *,
    drawn: Tensor,  # [B, T, Q], target quantiles
    returns: Tensor,  # [B, T]
    config: ValueFlowConfig,
    size: int,
    draws: torch.Generator,
    accelerator: Accelerator,
) -> float:
    """Passes over the answers, ``size`` rows a step; returns the mean loss."""
    losses, parts = [], critic.head.apart(critic.parameters())
    for _ in range(config.epochs):
        order = torch.randperm(len(drawn), generator=draws, device=drawn.device)
        for rows in order.split(size):
            part = answers.select(rows)
            with accelerator.autocast():
                hidden = critic.hidden(part)
            loss, _ = critic.head.loss(
                hidden.float(),
                drawn[rows],
                part.mask,
                target_mean=returns[rows],
                generator=draws,
            )
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            # By hand, as accelerate has not wrapped the critic; and every process takes part, even
            # one whose answers gave no gradient.
            for parameter in critic.parameters():
                grad = parameter.grad if parameter.grad is not None else parameter.new_zeros(())
                parameter.grad = accelerator.reduce(grad.expand_as(parameter), "mean")
            for parameters in parts:
                nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            optimizer.step()
            losses.append(loss.item())

    return sum(losses) / len(losses)


def whiten(
    advantages: Tensor,  # [B, T]
    mask: Tensor,  # [B, T] bool
    accelerator: Accelerator,
) -> Tensor:  # [B, T]
    """Mean 0 and standard deviation 1 over the tokens of all processes; 0 where masked."""
    kept = advantages[mask]
    sums = torch.stack([mask.sum().to(kept), kept.sum(), kept.square().sum()])
    count, total, squares = accelerator.reduce(sums, "sum")
    mean = total / count.clamp_min(1)
    deviation = (squares / count.clamp_min(1) - mean.square()).clamp_min(0).sqrt()
    return torch.where(mask, (advantages - mean) / (deviation + 1e-8), 0.0)
