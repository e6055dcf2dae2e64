"""torchrl: GAE over value quantiles as a value estimator, and a PPO loss that regresses on them.

    loss = QuantilePPOLoss(actor, critic)  # critic writes "state_value" [*B, T, Q]
    loss.make_value_estimator(DistributionalGAE, gamma=0.99, lmbda=0.95, value_network=critic)

Written against torchrl 0.14; importing this module imports torchrl.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.utils import hold_out_net
from torchrl.objectives.value import GAE
from torchrl.objectives.value.advantages import _self_set_grad_enabled, _self_set_skip_existing

from dfpo_kernels import distributional_gae, quantile_huber_loss

__all__ = ["DistributionalGAE", "QuantilePPOLoss", "distributional_advantage_estimate"]


def distributional_advantage_estimate(
    gamma: float,
    lmbda: float,
    state_value: Tensor,  # [*B, T, Q]
    next_state_value: Tensor,  # [*B, T, Q]
    reward: Tensor,  # [*B, T, 1]
    done: Tensor,  # [*B, T, 1] bool
    terminated: Tensor | None = None,  # [*B, T, 1] bool
    *,
    time_dim: int = -2,
) -> tuple[Tensor, Tensor]:  # [*B, T, Q], [*B, T, Q]
    """torchrl's ``generalized_advantage_estimate`` for every quantile, in one pass.

        delta_t = r_t + gamma (1 - terminated_t) z'_t - z_t
        A_t     = delta_t + gamma lmbda (1 - done_t) A_{t+1}

    A truncation, done without terminated, cuts the trace and keeps the value after it. Each stretch
    up to a done is a packed sequence of its own, so that no trace can cross.

    Returns:
        advantages A and targets z + A. Differentiable in both values and the reward.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it must be.

    Source: torchrl 0.14.1, objectives/value/functional.py.
    """
    terminated = done if terminated is None else terminated
    for name, tensor in (("reward", reward), ("done", done), ("terminated", terminated)):
        if tensor.shape != (*state_value.shape[:-1], 1):
            raise ValueError(
                f"{name}: has shape {list(tensor.shape)}, must be state_value's with a last axis "
                f"of 1, {[*state_value.shape[:-1], 1]}"
            )

    value, following, reward, done, terminated = (
        x.movedim(time_dim, -2) for x in (state_value, next_state_value, reward, done, terminated)
    )
    shape = value.shape
    ends = done.squeeze(-1).clone()
    ends[..., -1] = True
    cu_seqlens = torch.nn.functional.pad(ends.flatten().nonzero().squeeze(-1) + 1, (1, 0))
    reward = reward.flatten()
    advantages, targets = distributional_gae(
        reward,
        value.reshape(-1, shape[-1]),
        torch.ones_like(reward, dtype=torch.bool),
        gamma=gamma,
        lam=lmbda,
        next_quantiles=following.masked_fill(terminated, 0.0).reshape(-1, shape[-1]),
        mask_mode="none",
        cu_seqlens=cu_seqlens,
    )

    return tuple(x.view(shape).movedim(-2, time_dim) for x in (advantages, targets))


class DistributionalGAE(GAE):
    """torchrl's GAE where the value has Q quantiles; with Q = 1 the same numbers.

    Writes ``advantage`` [*B, T, 1], the mean over quantiles, and ``value_target`` [*B, T, Q].
    Takes GAE's arguments but ``vectorized``, which has no meaning here, ``auto_reset_env`` and
    ``shifted``.
    """

    def __init__(self, **kwargs: Any) -> None:
        for name in ("shifted", "auto_reset_env"):
            if kwargs.get(name):
                raise ValueError(f"{name}: is {kwargs[name]!r}, must be False in DistributionalGAE")
        super().__init__(**kwargs)

    @_self_set_skip_existing
    @_self_set_grad_enabled
    @dispatch
    def forward(
        self,
        tensordict: TensorDictBase,
        *,
        params: TensorDictBase | None = None,
        target_params: TensorDictBase | None = None,
        time_dim: int | None = None,
    ) -> TensorDictBase:
        """Adds advantages and value targets to ``tensordict`` [*B, T]."""
        advantages, targets = self._estimate(tensordict, params, target_params, time_dim)
        advantage = advantages.mean(-1, keepdim=True)
        if self.average_gae:
            advantage = self._normalize_advantage(advantage, groups=self._group_ids(tensordict))
        tensordict.set(self.tensor_keys.advantage, advantage)
        tensordict.set(self.tensor_keys.value_target, targets)
        return tensordict

    def value_estimate(
        self,
        tensordict: TensorDictBase,
        params: TensorDictBase | None = None,
        target_params: TensorDictBase | None = None,
        time_dim: int | None = None,
        **kwargs: Any,
    ) -> Tensor:  # [*B, T, Q]
        return self._estimate(tensordict, params, target_params, time_dim)[1]

    def _estimate(
        self,
        tensordict: TensorDictBase,
        params: TensorDictBase | None,
        target_params: TensorDictBase | None,
        time_dim: int | None,
    ) -> tuple[Tensor, Tensor]:
        keys = self.tensor_keys
        for name, numbers in (("gamma", self.gamma), ("lmbda", self.lmbda)):
            if numbers.numel() != 1:
                raise ValueError(f"{name}: has {numbers.numel()} numbers, must have one")

        if tensordict.get(keys.steps_to_next_obs, None) is not None:
            raise ValueError(
                f"{keys.steps_to_next_obs}: is given, must not be: DistributionalGAE has no "
                "multi-step discount"
            )

        value, following = self._values(tensordict, params, target_params)
        done = tensordict.get(("next", keys.done))
        return distributional_advantage_estimate(
            float(self.gamma),
            float(self.lmbda),
            value,
            following,
            tensordict.get(("next", keys.reward)),
            done,
            tensordict.get(("next", keys.terminated), default=done),
            time_dim=self._get_time_dim(time_dim, tensordict),
        )

    def _values(
        self,
        tensordict: TensorDictBase,
        params: TensorDictBase | None,
        target_params: TensorDictBase | None,
    ) -> tuple[Tensor, Tensor]:
        """Quantiles before and after each step, by the network or as they lie in the data."""
        key = self.tensor_keys.value
        if self.value_network is None:
            return tensordict.get(key), tensordict.get(("next", key))
        if params is not None:
            params = params.detach()
            target_params = params.clone(False) if target_params is None else target_params
        # As in GAE: gradients may pass through the network, not into its own parameters.
        own = params is None and target_params is None

        with hold_out_net(self.value_network) if own else nullcontext():
            value, following, _ = self._call_value_nets(
                data=tensordict,
                params=params,
                next_params=target_params,
                single_call=False,
                value_key=key,
                detach_next=True,
                vmap_randomness=self.vmap_randomness,
            )

        return value, following


class QuantilePPOLoss(ClipPPOLoss):
    """ClipPPOLoss whose critic loss is quantile regression on ``value_target`` [*B, T, Q].

    A distance between quantile i and target i, as in ClipPPOLoss, would draw all quantiles to the
    mean. ``kappa`` is the Huber threshold in units of return; the reduction is ClipPPOLoss's.
    """

    def __init__(self, *args: Any, kappa: float = 0.05, **kwargs: Any) -> None:
        if kwargs.get("clip_value"):
            raise ValueError(f"clip_value: is {kwargs['clip_value']!r}, must be None for quantiles")
        super().__init__(*args, **kwargs)
        self.kappa = kappa

    def loss_critic(self, tensordict: TensorDictBase) -> tuple[Tensor, None, None]:
        if self.separate_losses:
            tensordict = tensordict.detach()
        targets = tensordict.get(self.tensor_keys.value_target)
        with (
            self.critic_network_params.to_module(self.critic_network)
            if self.functional
            else nullcontext()
        ):
            quantiles = self.critic_network(tensordict).get(self.tensor_keys.value)

        loss = quantile_huber_loss(quantiles, targets, kappa=self.kappa).unsqueeze(-1)
        return self.critic_coeff * loss, None, None
