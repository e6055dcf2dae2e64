"""DVPO's critic: an ensemble of quantile heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dfpo.config import Config
from dfpo.config.types import Counts, CriticTargets, Estimate, Samples
from dfpo.method.critics.trunk import TrunkCritic, after_last, return_units, seeded_trunk
from dfpo.method.losses import masked_mean
from dfpo_kernels import quantile_huber_loss
from dfpo_kernels.value_flow import losses


class QuantileCritic(TrunkCritic):
    """DVPO's critic: an ensemble of quantile heads, each two ReLU layers, and its terms.

        quantile      quantile Huber loss of each head on all pairs               (Eq. 3)
        risk          squared differences of both tail means, of the ensemble     (Eq. 5, 6)
        mean_shift    relu(mean y - mean q)                                       (Eq. 7)
        tail_shape    variance and curvature of the tails                         (Eq. 8, 9)
        consistency   squared differences between heads                           (Eq. 10)

    Its value is the mean over heads. Targets keep their index: quantile-wise GAE.

    Source: arXiv 2512.03847, reconstructed from public summaries: forms are those of third parties
    and the weighting of its Eq. 4 is left out. Levels are midpoints, and kappa is small, where j/M
    and 1 are told: with few quantiles of a reward in [0, 1] these bias the mean upwards.
    """

    def __init__(self, trunk: PreTrainedModel, mean: float, scale: float, config: Config) -> None:
        super().__init__(trunk)
        settings = config.critic
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(trunk.config.hidden_size, settings.width), nn.ReLU(),
                nn.Linear(settings.width, settings.width), nn.ReLU(),
                nn.Linear(settings.width, settings.num_quantiles),
            )
            for _ in range(settings.heads)
        )  # fmt: skip

        self.mean, self.scale = mean, scale
        self.coefs, self.settings = config.coef, settings

    def quantiles(self, samples: Samples) -> Tensor:  # [heads, B, T + 1, Q], in flow units
        hidden = self.hidden(samples)
        return torch.stack([head(hidden) for head in self.heads])

    @torch.no_grad()
    def estimate(self, samples: Samples, noise: Tensor | None = None) -> Estimate:
        values = self.quantiles(samples).mean(0) * self.scale + self.mean
        return Estimate(quantiles=values[:, :-1], final=after_last(values, samples))

    def loss(
        self, samples: Samples, targets: CriticTargets, counts: Counts
    ) -> tuple[Tensor, dict[str, Tensor]]:
        heads = self.quantiles(samples)[:, :, :-1]
        shape = (-1, heads.shape[-1])
        y = ((targets.quantiles - self.mean) / self.scale).reshape(shape)
        ensemble, kappa = heads.mean(0).reshape(shape), self.settings.kappa / self.scale
        terms = {
            "quantile": torch.stack(
                [quantile_huber_loss(head.reshape(shape), y, kappa=kappa) for head in heads]
            ).mean(0),
            # Mean over pairs of heads i != i' of (q_i - q_i')^2: twice the sample variance.
            "consistency": 2 * heads.var(0).mean(-1).reshape(-1)
            if len(heads) > 1
            else torch.zeros_like(y[:, 0]),
            "mean_shift": losses.mean_shift_loss(ensemble, y),
        }

        q, y = ensemble.sort(-1).values, y.sort(-1).values
        tail = self.settings.tail
        terms["risk"] = losses.tail_mean_loss(q, y, tail)
        terms["tail_shape"] = losses.tail_shape_loss(q, y, tail, self.settings.curvature)
        means = {
            name: masked_mean(term.view_as(samples.mask), samples.mask, counts.tokens)
            for name, term in terms.items()
        }
        loss = sum(getattr(self.coefs, name) * term for name, term in means.items())

        return loss, {name: term.detach() for name, term in means.items()}


def build(policy: PreTrainedModel, config: Config) -> QuantileCritic:
    return QuantileCritic(seeded_trunk(policy, config), *return_units(config), config)
