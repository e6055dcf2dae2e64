"""The value flow as a module: hidden states of a language model in, return quantiles out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from dfpo_kernels import _checks as checks
from dfpo_kernels.field import FlowField
from dfpo_kernels.integrate_flow import flow_velocity, integrate_flow
from dfpo_kernels.quantile_huber_loss import quantile_huber_loss
from dfpo_kernels.value_flow import losses
from dfpo_kernels.value_flow.base_noise import base_grid, stratified_noise
from dfpo_kernels.value_flow.inputs import PathTargets, ValueFlowCoefs
from dfpo_kernels.value_flow.mean import move_to_mean
from dfpo_kernels.value_flow.tokens import counted_tokens

__all__ = ["PathTargets", "ValueFlowCoefs", "ValueFlowHead", "base_grid"]

COUPLINGS = ("quantile", "shared_noise")
READOUTS = ("flow", "one_step")
WEIGHT_MODES = ("none", "inverse", "vf")
RISK_FORMS = ("rockafellar_uryasev", "tail_mean")


def build_conditioner(hidden_size: int, size: int) -> nn.Sequential:
    """What the head does with a token's state before anything depends on a quantile: LayerNorm
    and two SiLU layers, [..., hidden_size] -> [..., size]."""
    return nn.Sequential(
        nn.LayerNorm(hidden_size),
        nn.Linear(hidden_size, size),
        nn.SiLU(),
        nn.Linear(size, size),
        nn.SiLU(),
    )


def _restored(head: ValueFlowHead, _keys: object) -> None:
    head._restore_base()


class ValueFlowHead(nn.Module):
    """Conditional value flow: a conditioner run once per token, and two ridge fields.

        c = silu(Linear(silu(Linear(LayerNorm(h)))))
        bias = W_a c + a_0,   gain = w + W_g c (per channel),   offset = W_b h + b_0
        velocity(z, s) = offset + sum_w gain_w silu(bias_w + z_weight_w z + time_weight_w s)

    Channel V is the velocity that carries base noise N(0, 1) at flow time 0 to the return at
    flow time 1. Channel G is the displacement of one Euler step from flow time 0, so that
    eps + G(eps) is a quantile without a solver. They share everything but the gain. With
    ``channels=1`` G is V at flow time 0.

    The offset is a linear mean: a linear value that learns the mean return, within
    ``return_range``, by the term ``mean`` alone. It is the only path of a gradient into ``hidden``.
    The flow shapes the distribution around it, and every readout is moved so that its mean is this
    value (``move_to_mean``). Under noisy rewards the flow's terms drown the mean where both are
    taught on shared features. With ``linear_mean=False`` the offsets (per channel, of c) are part
    of the flow, all terms reach ``hidden``, and the mean is that of the quantiles.

    Inside, returns are z = (G - return_mean) / return_scale; all that goes in and out is in units
    of return. The field starts at zero: before training the quantiles are those of
    N(return_mean, return_scale^2), clipped to ``return_range``.

    Args:
        hidden_size: width D of the hidden states.
        num_quantiles: Q, quantiles (particles) per token.
        width: W, ridge units of the field.
        conditioner_size: width of the conditioner's two layers; default ``width``.
        steps: solver steps of the flow readout, see ``integrate_flow``.
        method: its solver.
        return_mean: middle of the returns, 0 in flow units; 0.5 for returns of 0 and 1.
        return_scale: what is 1 in flow units, in units of return; 0.5 for returns of 0 and 1.
        return_range: known bounds (low, high) of the return; quantiles and targets are clipped.
        channels: 2 (V and G) or 1.
        linear_mean: whether the mean is learned apart from the flow.
        readout: "flow" integrates V; "one_step" is base + G(base).
        coupling: how targets meet base noise in training: "quantile" sorts both (the optimal
            one-dimensional transport), "shared_noise" keeps the index and the given base.
        weight_mode: per-token weight on flow matching from the spread of the estimate: "none",
            "inverse" (less where uncertain) or "vf" (more where uncertain, as in Value Flows).
        weight_temperature: spread, in flow units, at which that weight turns.
        risk_form: "rockafellar_uryasev" (unbiased) or "tail_mean" (DVPO's form).
        tail: fraction of quantiles in each tail.
        lower_contraction: in [0, 1], moves the lower tail's target towards the mean.
        curvature: weight of curvature within the tail-shape term.
        kappa: Huber threshold of the endpoint loss, in units of return.

    Source: arXiv 2602.05890 (components), 2510.07650 (flow matching of returns),
    2605.08253 (path coupling).
    """

    def __init__(
        self,
        hidden_size: int,
        num_quantiles: int = 64,
        width: int = 64,
        *,
        conditioner_size: int | None = None,
        steps: int = 8,
        method: str = "euler",
        return_mean: float = 0.0,
        return_scale: float = 1.0,
        return_range: tuple[float, float] | None = None,
        channels: int = 2,
        linear_mean: bool = True,
        readout: str = "flow",
        coupling: str = "quantile",
        weight_mode: str = "none",
        weight_temperature: float = 0.3,
        risk_form: str = "rockafellar_uryasev",
        tail: float = 0.1,
        lower_contraction: float = 0.0,
        curvature: float = 0.01,
        kappa: float = 0.05,
    ) -> None:
        super().__init__()
        checks.check_integer("hidden_size", hidden_size, 1, 1 << 30)
        checks.check_integer("num_quantiles", num_quantiles, 1, 1 << 20)
        checks.check_integer("width", width, 1, 1 << 20)
        checks.check_integer("channels", channels, 1, 2)
        if not isinstance(linear_mean, bool):
            raise TypeError(f"linear_mean: got {type(linear_mean).__name__}, must be a bool")
        checks.check_choice("readout", readout, READOUTS)
        checks.check_choice("coupling", coupling, COUPLINGS)
        checks.check_choice("weight_mode", weight_mode, WEIGHT_MODES)
        checks.check_choice("risk_form", risk_form, RISK_FORMS)
        checks.check_number("return_scale", return_scale, 1e-12, 1e12)
        checks.check_number("tail", tail, 0.0, 0.5)
        checks.check_number("lower_contraction", lower_contraction, 0.0, 1.0)
        if return_range is not None and not return_range[0] < return_range[1]:
            raise ValueError(f"return_range: is {return_range}, must be (low, high), low < high")
        self.num_quantiles, self.width, self.channels = num_quantiles, width, channels
        self.linear_mean = linear_mean
        self.steps, self.method, self.readout = steps, method, readout
        self.return_mean, self.return_scale = return_mean, return_scale
        self.return_range = return_range
        self.coupling, self.weight_mode = coupling, weight_mode
        self.weight_temperature = weight_temperature
        self.risk_form, self.tail = risk_form, tail
        self.lower_contraction, self.curvature, self.kappa = lower_contraction, curvature, kappa

        size = conditioner_size or width
        self.conditioner = build_conditioner(hidden_size, size)
        self.bias = nn.Linear(size, width)
        self.gain = nn.Linear(size, channels * width)

        # Two names: neither loads the other's weights, which mean something else.
        if linear_mean:
            self.mean = nn.Linear(hidden_size, 1)
        else:
            self.offset = nn.Linear(size, channels)

        self.z_weight = nn.Parameter(torch.empty(width))
        self.time_weight = nn.Parameter(torch.empty(width))
        self.register_buffer("base", base_grid(num_quantiles), persistent=False)
        self.register_load_state_dict_post_hook(_restored)
        self.reset_parameters()

    def _restore_base(self, *_: object) -> None:
        """The grid of base noise is a constant, made anew where a module has been moved, cast,
        emptied or loaded: in the dtype and on the device of the weights."""
        weight = self.z_weight
        self.base = base_grid(self.num_quantiles).to(weight.device, weight.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ValueFlowHead:
        super()._apply(fn, recurse)
        self._restore_base()
        return self

    def reset_parameters(self) -> None:
        """The field starts at (nearly) zero; its kinks are spread over the range of z."""
        self._restore_base()
        nn.init.normal_(self.z_weight)
        nn.init.normal_(self.time_weight)
        # A constant bias per unit spreads the kinks; without it all lie on one point.
        nn.init.normal_(self.bias.bias, std=1.5)
        # Not exactly zero: zero would leave the trunk without a gradient at the first step.
        nn.init.normal_(self.gain.weight, std=1e-2 / math.sqrt(self.gain.in_features))
        nn.init.zeros_(self.gain.bias)
        value = self.mean if self.linear_mean else self.offset
        nn.init.normal_(value.weight, std=1e-2 / math.sqrt(value.in_features) * self.linear_mean)
        nn.init.zeros_(value.bias)

    def fields(self, hidden: Tensor) -> tuple[FlowField, FlowField]:
        """Fields V and G of each token; hidden [..., D] -> bias, gain [..., W], offset [...]."""
        condition = self.conditioner(hidden.detach() if self.linear_mean else hidden)
        bias = self.bias(condition)
        gains = self.gain(condition).split(self.width, dim=-1)
        offset = self.mean(hidden) if self.linear_mean else self.offset(condition)
        offsets = offset.expand(*offset.shape[:-1], self.channels).unbind(-1)
        velocity, one_step = (
            FlowField(bias, gains[c], offsets[c], self.z_weight, self.time_weight)
            for c in (0, self.channels - 1)
        )

        return velocity, one_step

    def forward(self, hidden: Tensor) -> Tensor:
        """Sorted return quantiles of each token, in units of return: [..., D] -> [..., Q]."""
        return self.quantiles(*self.fields(hidden), self.base)

    def quantiles(self, velocity: FlowField, one_step: FlowField, base: Tensor) -> Tensor:
        """Readout of the fields at ``base`` [Q] or [..., Q] -> [..., Q], in units of return."""
        if self.readout == "flow":
            z = integrate_flow(velocity, base, steps=self.steps, method=self.method)
        else:
            z = base + flow_velocity(one_step, self._expand(base, one_step), 0.0)
        value = self._returns(z, velocity)
        return value.sort(-1).values if self.coupling == "quantile" else value

    def one_step(self, hidden: Tensor) -> Tensor:
        """Quantiles by one evaluation of G, for inference: [..., D] -> [..., Q]."""
        _, field = self.fields(hidden)
        z = self.base + flow_velocity(field, self._expand(self.base, field), 0.0)
        return self._returns(z, field).sort(-1).values

    def apart(self, parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
        """``parameters``, a critic's with this head, in parts that share no gradient: what the
        linear mean reaches, and the flow around it; one part without it. A trainer that clips
        gradients by norm should clip each by its own, or the flow's scales the mean's down."""
        own = (self.conditioner, self.bias, self.gain)
        distribution = [
            *(p for module in own for p in module.parameters()),
            self.z_weight,
            self.time_weight,
        ]
        ids = set(map(id, distribution)) if self.linear_mean else set()
        parts = [], []

        for parameter in parameters:
            parts[id(parameter) in ids].append(parameter)

        return [part for part in parts if part]

    def loss(
        self,
        hidden: Tensor,  # [..., D]
        target_quantiles: Tensor,  # [..., Q]
        mask: Tensor,  # [...]
        *,
        coefs: ValueFlowCoefs | None = None,
        base: Tensor | None = None,  # [..., Q]
        spread: Tensor | None = None,  # [...]
        target_mean: Tensor | None = None,  # [...]
        path: PathTargets | None = None,
        generator: torch.Generator | None = None,
        most_tokens: int | None = None,
        draws: Tensor | None = None,  # [..., Q + 1]
        weight: Tensor | None = None,  # [...]
        total_tokens: float | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Value-flow loss, a mean over unmasked tokens, and its terms.

        Masked tokens cost nothing. How many are left is in ``mask``, so a GPU makes the host wait
        for it once; with ``most_tokens`` it does not.

        Args:
            hidden: states that predict each token, [..., D].
            target_quantiles: samples of the return, [..., Q], for example from
                ``lambda_mixture_targets``; in units of return, no gradient flows into them.
            mask: nonzero where a token counts, [...].
            coefs: weights of the terms; default ``ValueFlowCoefs()``.
            base: base noise the targets were made with, needed by coupling "shared_noise".
            spread: standard deviation of the estimate per token, needed by ``weight_mode``.
            target_mean: expected return of each token, [...], for the term ``mean``; default the
                mean of ``target_quantiles``. That of GAE is better where targets are drawn: the
                horizons of a mixture add to the variance of their mean, 40 % at the first of 40
                tokens with 32 quantiles and a trace of .95.
            path: flows of later states, needed by ``coefs.path``.
            generator: source of flow times and base noise.
            most_tokens: the number of unmasked tokens, where the host knows it; a larger number
                costs time alone, tokens beyond a smaller one are left out.
            draws: uniforms in [0, 1), [..., Q + 1], of each token's flow time and base noise, in
                place of what ``generator`` would give. So a token's loss does not depend on what it
                is in a batch with.
            weight: weight of each token's flow matching, [...], in place of the one that ``spread``
                gives; from ``token_weights`` of the whole batch where this is a part of it.
            total_tokens: what the means divide by, the tokens of the whole batch where this is a
                part of it: the parts' losses and gradients then add up to the whole batch's.

        Returns:
            loss: scalar, with gradient.
            terms: each term's mean before its coefficient, detached; none where ``mask`` has no
                token and the host knows.

        Raises:
            TypeError, ValueError: naming the argument, what it was and what it must be.
        """
        coefs = coefs or ValueFlowCoefs()
        checks.check_tensor("mask", mask)
        for name, tensor, size in (
            ("hidden", hidden, self.conditioner[0].normalized_shape[0]),
            ("target_quantiles", target_quantiles, self.num_quantiles),
        ):
            checks.check_float_tensor(name, tensor)
            checks.check_shape(name, tensor, (*mask.shape, size), "mask's shape and one axis more")

        for name, tensor in (("target_mean", target_mean), ("spread", spread), ("weight", weight)):
            if tensor is not None:
                checks.check_float_tensor(name, tensor)
                checks.check_shape(name, tensor, mask.shape, "mask's shape")

        if base is not None:
            checks.check_float_tensor("base", base)
            checks.check_shape("base", base, target_quantiles.shape, "target_quantiles' shape")
        if draws is not None:
            checks.check_float_tensor("draws", draws)
            shape = (*mask.shape, self.num_quantiles + 1)
            checks.check_shape("draws", draws, shape, "mask's shape and Q + 1 draws a token")

        if total_tokens is not None:
            checks.check_number("total_tokens", total_tokens, 1, 2**63)
        at, mean = counted_tokens(mask, most_tokens, total_tokens)
        hidden = at(hidden)

        if not len(hidden):
            # Zero, with a gradient of zeros for every parameter: a process whose tokens are all
            # masked must not leave the others waiting for its gradients.
            nothing = sum(parameter.flatten()[:0].sum() for parameter in self.parameters())
            return hidden.sum() + nothing, {}

        velocity, one_step = self.fields(hidden)
        y = self._flow_units(at(target_quantiles))
        expected = y if target_mean is None else self._flow_units(at(target_mean)).unsqueeze(-1)
        time, jitter = self._drawn(y, None if draws is None else at(draws), generator)
        eps = self._training_base(jitter, at(base) if base is not None else None)
        if self.coupling == "quantile":
            y = y.sort(-1).values

        if weight is not None:
            weight = at(weight)
        else:
            weight = self._uncertainty_weight(at(spread) if spread is not None else None, mean)

        terms: dict[str, Tensor] = {}
        if self.linear_mean:
            if not coefs.mean:
                raise ValueError("mean: is 0, must be above 0: the linear mean learns by it alone")
            terms["mean"] = losses.token_mean_loss(velocity.offset.unsqueeze(-1), expected)
            velocity, one_step = (
                f._replace(offset=f.offset.detach()) for f in (velocity, one_step)
            )

        if coefs.anchor:
            u = time.unsqueeze(-1)
            matched = flow_velocity(velocity, (1 - u) * eps + u * y, time)
            terms["anchor"] = weight * (matched - (y - eps)).square().mean(-1)
            if self.channels == 1 and coefs.consistency:
                # One channel cannot hold both maps: ask V to keep its direction along the path.
                with torch.no_grad():
                    start = flow_velocity(velocity, eps, 0.0)
                terms["consistency"] = (matched - start).square().mean(-1)

        if coefs.path:
            if path is None:
                raise ValueError("path: is None, must be given when coefs.path is above 0")
            path = path.map(at)
            # Off 0, where the point is the base noise alone whatever the return.
            late = 0.02 + 0.98 * time
            x, target = self.path_point(eps, late, path)
            error = (flow_velocity(velocity, x, late) - target).square().mean(-1)
            terms["path"] = weight * torch.where(path.mask != 0, error, 0.0)

        terms |= self._endpoint_terms(velocity, one_step, y, expected, eps, coefs)
        means = {name: mean(term) for name, term in terms.items()}
        loss = sum(getattr(coefs, name) * term for name, term in means.items())
        return loss, {name: term.detach() for name, term in means.items()}

    def _endpoint_terms(
        self, velocity: FlowField, one_step: FlowField, y: Tensor, expected: Tensor,
        eps: Tensor, coefs: ValueFlowCoefs,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Terms on the one-step quantiles q = base + G(base), in flow units; y [R, Q] is in
        ascending order under quantile coupling, and its mean is that of expected [R, *]."""
        base = self._expand(self.base, one_step) if self.coupling == "quantile" else eps
        q = base + flow_velocity(one_step, base, 0.0)
        terms: dict[str, Tensor] = {}
        if coefs.consistency and self.channels == 2:
            with torch.no_grad():
                z = integrate_flow(velocity, base, steps=self.steps, method=self.method)
                z = self._clip_flow(z)
                z = z.sort(-1).values if self.coupling == "quantile" else z
            terms["consistency"] = (q - z).square().mean(-1)

        if coefs.quantile:
            terms["quantile"] = quantile_huber_loss(q, y, kappa=self.kappa / self.return_scale)
        if coefs.mean and not self.linear_mean:
            terms["mean"] = losses.token_mean_loss(q, expected)
        if coefs.mean_shift:
            terms["mean_shift"] = losses.mean_shift_loss(q, y)
        if coefs.risk or coefs.tail_shape:
            q = q.sort(-1).values
            y = y if self.coupling == "quantile" else y.sort(-1).values

        if coefs.risk:
            terms["risk"] = (
                losses.conditional_value_risk_loss(q, y, self.tail, self.lower_contraction)
                if self.risk_form == "rockafellar_uryasev"
                else losses.tail_mean_loss(q, y, self.tail)
            )

        if coefs.tail_shape:
            terms["tail_shape"] = losses.tail_shape_loss(q, y, self.tail, self.curvature)
        return terms

    def path_point(
        self, eps: Tensor, time: Tensor, path: PathTargets
    ) -> tuple[Tensor, Tensor]:  # [R, Q], [R, Q]
        """A point on the path from base noise to the return L tokens on, and its velocity.

            z' = flow of the later state from 0 to u
            x = u R + c z' + (1 - c)(1 - u) eps,    velocity = R + c v(z', u) - (1 - c) eps

        with c = gamma^L and R in flow units: x is eps at u = 0 and R + c z'_1 at u = 1.
        eps [R, Q], time u [R]. Source: arXiv 2605.08253, its control variate at full strength.
        """
        c, u = path.discount.unsqueeze(-1), time.unsqueeze(-1)
        rewards = (path.rewards.unsqueeze(-1) - (1 - c) * self.return_mean) / self.return_scale
        with torch.no_grad():
            later = integrate_flow(path.field, eps, steps=4, end=time)
            x = u * rewards + c * later + (1 - c) * (1 - u) * eps
            return x, rewards + c * flow_velocity(path.field, later, time) - (1 - c) * eps

    def token_weights(self, spread: Tensor | None, mask: Tensor) -> Tensor | None:
        """``weight_mode``'s weights of flow matching for ``loss``, [...], of mean 1 over the
        unmasked tokens; None where all weigh the same. ``spread`` [...] in units of return."""
        if self.weight_mode == "none":
            return None
        counts = mask != 0

        def mean(x: Tensor) -> Tensor:
            return torch.where(counts, x, 0.0).sum() / counts.sum().clamp_min(1)

        return self._uncertainty_weight(spread, mean)

    def _drawn(
        self, y: Tensor, draws: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:  # [R], [R, Q]
        """Uniforms: one flow time per token, shared by its quantiles and by both matching terms,
        and the place of each particle within its share of the base distribution."""
        if draws is None:
            shape = (y.shape[0], y.shape[1] + 1)
            draws = torch.rand(shape, generator=generator, device=y.device)
        return draws[:, 0], draws[:, 1:]

    def _training_base(self, jitter: Tensor, base: Tensor | None) -> Tensor:
        """Base noise [R, Q]: stratified and sorted, or the given one under shared noise."""
        if self.coupling == "shared_noise":
            if base is None:
                raise ValueError("base: is None, must be given when coupling is 'shared_noise'")
            return base
        return stratified_noise(jitter)

    def _uncertainty_weight(
        self, spread: Tensor | None, mean: Callable[[Tensor], Tensor]
    ) -> Tensor | float:
        if self.weight_mode == "none":
            return 1.0
        if spread is None:
            raise ValueError(
                f"spread: is None, must be given when weight_mode is {self.weight_mode!r}"
            )

        spread = spread.to(torch.promote_types(spread.dtype, torch.float32))
        ratio = self.weight_temperature / (spread / self.return_scale + 1e-4)
        confident = torch.sigmoid(ratio)
        weight = confident if self.weight_mode == "inverse" else 1.5 - confident
        # Zero only where no token counts.
        return weight / mean(weight).clamp_min(1e-12)

    def _expand(self, base: Tensor, field: FlowField) -> Tensor:
        return base.expand(*field.offset.shape, base.shape[-1])

    def _returns(self, z: Tensor, field: FlowField) -> Tensor:
        """Returns of flow endpoints z [..., Q], within their range, the linear mean as mean."""
        if self.linear_mean:
            z = move_to_mean(z, field.offset, self._flow_range())
        return self._clip(z * self.return_scale + self.return_mean)

    def _flow_units(self, target: Tensor) -> Tensor:
        target = target.detach().to(torch.promote_types(target.dtype, torch.float32))
        return (self._clip(target) - self.return_mean) / self.return_scale

    def _clip(self, value: Tensor) -> Tensor:
        return value if self.return_range is None else value.clamp(*self.return_range)

    def _clip_flow(self, z: Tensor) -> Tensor:
        return z if self.return_range is None else z.clamp(*self._flow_range())

    def _flow_range(self) -> tuple[float, float] | None:
        if self.return_range is None:
            return None
        low, high = ((b - self.return_mean) / self.return_scale for b in self.return_range)
        return low, high

    def extra_repr(self) -> str:
        return (
            f"num_quantiles={self.num_quantiles}, width={self.width}, channels={self.channels}, "
            f"steps={self.steps}, method={self.method!r}, readout={self.readout!r}"
        )
