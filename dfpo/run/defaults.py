"""Settings whose defaults depend on the model and on the first rewards."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dfpo.config import Config, ConfigError
from dfpo.config.noise import parse_noise
from dfpo.config.rules import is_read
from dfpo.config.spaces import SPACES
from dfpo.rewards.sources import PYTHON
from dfpo.rollout.policy import SMALL_MODEL
from dfpo.tasks.source import absolute_task


def complete(config: Config, policy: PreTrainedModel, probed: Tensor) -> Config:
    """Fills in the settings whose defaults depend on the model and on its rewards, and makes paths
    absolute, so that the stored configuration starts the same run from anywhere.

    The range of rewards is what the critic is scaled by and what noise mirrors a reward in: [0, 1]
    for a task's verifier and where all probed rewards lie in it, else mean -+ 2 standard
    deviations of the probed rewards.
    """
    critic, optimiser, reward = config.critic, config.policy, config.reward
    small = policy.num_parameters() < SMALL_MODEL
    policy_rate, critic_rate = optimiser.learning_rate, critic.learning_rate
    if policy_rate is None:
        policy_rate = 1.5e-4 if small else 2e-5 if config.lora.rank else 1e-6
    if critic_rate is None and is_read(config, "critic.learning_rate"):
        critic_rate = 1e-3 if small else 1e-5
    low, high, clip = reward.low, reward.high, critic.clip_returns

    if low is not None:
        bounded = True
    else:
        binary = bool(((probed == 0) | (probed == 1)).all())
        low, high = 0.0, 1.0
        if bool(((probed < 0) | (probed > 1)).any()):
            low, high = range_of(probed)
        bounded = binary or not reward.functions

    if parse_noise(config.noise).hides_range:
        bounded = reward.told_low is not None
    if reward.space != "raw":
        bounded = SPACES[reward.space].bounded
    if clip is None and is_read(config, "critic.clip_returns"):
        clip = bounded
    return dataclasses.replace(
        config,
        model=_absolute(config.model),
        task=absolute_task(config.task),
        data=_absolute(config.data),
        eval_data=_absolute(config.eval_data),
        reward=dataclasses.replace(
            reward, functions=tuple(map(_absolute_function, reward.functions)), low=low, high=high
        ),
        rollout=dataclasses.replace(
            config.rollout, function=_absolute_function(config.rollout.function)
        ),
        policy=dataclasses.replace(optimiser, learning_rate=policy_rate),
        critic=dataclasses.replace(
            critic,
            learning_rate=critic_rate, clip_returns=clip,
        ),
    )  # fmt: skip


def with_told_range(config: Config, told: Tensor) -> Config:  # [N]
    """The range after a noise that leaves the reward's own, as well as first answers tell it."""
    low, high = range_of(told) if len(told) else (config.reward.low, config.reward.high)
    reward = dataclasses.replace(config.reward, told_low=low, told_high=high)
    return dataclasses.replace(config, reward=reward)


def range_of(probed: Tensor) -> tuple[float, float]:
    """Mean -+ 2 standard deviations, rounded to a hundredth of them, whatever the offset. Raises
    ConfigError where that is no range a critic can be scaled by."""
    values = probed.double()
    mean, spread = float(values.mean()), 2 * float(values.std(correction=0))
    # Of rewards that are all equal nothing is known.
    spread = spread or max(1.0, 1e-4 * abs(mean))
    digits = 2 - math.floor(math.log10(spread))
    low, high = (round(mean + sign * spread, digits) for sign in (-1, 1))
    scales = 1e-12 <= spread <= 1e12

    if not scales or float(torch.tensor(low)) >= float(torch.tensor(high)):
        raise ConfigError(
            f"reward: the first ones lie around {mean:g} -+ {spread:g}, must spread over 1e-12 to "
            "1e12, and by more than float32 rounds them by: scale them or take their offset off"
        )

    return low, high


def _absolute_function(text: str | None) -> str | None:
    return text if not text or text.startswith(PYTHON) else str(Path(text).absolute())


def _absolute(path: str | None) -> str | None:
    """A path from anywhere; the name of a data set on the hub as it is."""
    return path if path is None or not Path(path).exists() else str(Path(path).absolute())
