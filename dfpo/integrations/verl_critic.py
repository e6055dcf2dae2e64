"""A critic of a distribution for verl: its score, the reading of it and its loss."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from dfpo.integrations.verl_settings import Settings, cropped
from dfpo_kernels import FlowField, quantile_huber_loss
from dfpo_kernels.nn import ValueFlowHead, base_grid


class FlowScore(nn.Module):
    """The coefficients of a token's value flow: hidden [..., D] -> [..., 5 W + 2].

    It stands where the model has its linear ``score``, so that its parameters are sharded,
    gathered and saved with the model's; verl's loss sees only what the model returns. The weights
    that all tokens share are repeated for each, and the reader takes the first.
    """

    def __init__(self, hidden_size: int, settings: Settings) -> None:
        super().__init__()
        self.head = ValueFlowHead(hidden_size, **head_arguments(settings))

    def forward(self, hidden: Tensor) -> Tensor:
        velocity, one_step = self.head.fields(hidden)
        shared = torch.cat([velocity.z_weight, velocity.time_weight])
        offsets = torch.stack([velocity.offset, one_step.offset], dim=-1)
        return torch.cat(
            [
                velocity.bias, velocity.gain, one_step.gain, offsets,
                shared.expand(*velocity.offset.shape, -1),
            ],
            dim=-1,
        )  # fmt: skip


class FlowReader(ValueFlowHead):
    """A value-flow head whose hidden states are the coefficients that ``FlowScore`` gives."""

    def fields(self, hidden: Tensor) -> tuple[FlowField, FlowField]:
        width = self.width
        bias, gain, one_step_gain, offsets, shared = hidden.split(
            [width, width, width, 2, 2 * width], dim=-1
        )
        z_weight, time_weight = shared.reshape(-1, 2 * width)[0].split(width)

        return (
            FlowField(bias, gain, offsets[..., 0], z_weight, time_weight),
            FlowField(bias, one_step_gain, offsets[..., 1], z_weight, time_weight),
        )


def head_arguments(settings: Settings) -> dict[str, Any]:
    return {
        "num_quantiles": settings.num_quantiles,
        "width": settings.width,
        "return_mean": (settings.return_low + settings.return_high) / 2,
        "return_scale": (settings.return_high - settings.return_low) / 2,
        "kappa": settings.kappa,
    }


@functools.cache
def flow_reader(settings: Settings, device: torch.device) -> FlowReader:
    """Has no weights of its own in use; built once, off the global random numbers."""
    with torch.random.fork_rng(devices=[]):
        return FlowReader(5 * settings.width + 2, **head_arguments(settings)).to(device)


def make_score(hidden_size: int, settings: Settings) -> nn.Module:
    """In place of the model's linear ``score``; starts at the distribution of the settings."""
    if settings.critic == "flow":
        return FlowScore(hidden_size, settings)
    score = nn.Linear(hidden_size, settings.num_quantiles)
    mean, scale = (head_arguments(settings)[name] for name in ("return_mean", "return_scale"))
    nn.init.zeros_(score.weight)
    with torch.no_grad():
        score.bias.copy_(mean + scale * base_grid(settings.num_quantiles))
    return score


def read_quantiles(scores: Tensor, settings: Settings) -> Tensor:  # [..., C] -> [..., Q]
    """Return quantiles of what the model's score gave, in float32."""
    if settings.critic == "quantile":
        return scores.float()
    reader = flow_reader(settings, scores.device)
    return reader.quantiles(*reader.fields(scores.float()), reader.base)


def value_loss(
    model_output: dict[str, Tensor],
    data: Any,
    dp_group: Any = None,
    *,
    loss_agg_mode: str,
    loss_scale_factor: int | None,
    settings: Settings,
) -> tuple[Tensor, dict[str, Any]]:
    """In place of ``verl.workers.utils.losses.value_loss``: scores against ``returns`` [B, T, Q].

    Quantile Huber loss of the quantiles, or the value flow's loss, normalised by verl's
    ``agg_loss`` over the global batch, so that micro-batches and ranks change nothing. There is no
    value clipping.

    Raises:
        ValueError: naming the values, where the critic's worker runs verl's own engine.
    """
    from verl.trainer.ppo.core_algos import agg_loss
    from verl.utils.metric import AggregationType, Metric
    from verl.workers.utils.padding import no_padding_2_padding

    scores = no_padding_2_padding(model_output["values"], data).float()  # [B, T, C]
    if scores.dim() != 3:
        raise ValueError(
            f"values: have shape {list(scores.shape)}, must be [B, T, C]: the critic's worker runs "
            "verl's own engine (DFPO_VERL must be set in every process)"
        )

    counts = {key: data[key] for key in ("dp_size", "batch_num_tokens", "global_batch_size")}
    padded = data.select("returns", "response_mask").to_padded_tensor()
    mask = padded["response_mask"].bool()
    targets = cropped(padded["returns"].float(), mask)  # [B, T, Q]

    if settings.critic == "quantile":
        losses = quantile_huber_loss(scores, targets, kappa=settings.kappa)
        means = scores.detach().mean(-1)
        terms = {"vpred_mean": (means * mask).sum() / mask.sum().clamp_min(1)}
    else:
        loss, terms = flow_reader(settings, scores.device).loss(scores, targets, mask)
        losses = loss.expand(mask.shape)

    loss = agg_loss(
        losses, mask, loss_agg_mode, **counts, loss_scale_factor=loss_scale_factor
    )  # fmt: skip
    partial_sums = counts["dp_size"] > 1 or any(
        count is not None
        for count in (counts["batch_num_tokens"], counts["global_batch_size"], loss_scale_factor)
    )
    aggregation = AggregationType.SUM if partial_sums else AggregationType.MEAN
    metrics = {f"critic/{name}": term.item() for name, term in terms.items()}

    return loss, {"critic/vf_loss": Metric(value=loss, aggregation=aggregation), **metrics}
