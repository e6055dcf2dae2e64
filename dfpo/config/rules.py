"""What no single setting can check: which of them go together."""

from __future__ import annotations

from dfpo.config.errors import ConfigError
from dfpo.config.noise import parse_noise
from dfpo.config.risk import parse_risk
from dfpo.config.settings import Config


def check_together(config: Config) -> None:
    """Raises ConfigError for settings that are right alone and wrong together."""
    for name, parse in (("noise", parse_noise), ("risk", parse_risk)):
        try:
            parse(getattr(config, name))
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None
    kind = config.critic.kind
    if config.risk != "neutral" and kind not in ("value_flow", "quantile"):
        raise ConfigError(
            f"risk: is {config.risk}, must be neutral with a critic of kind {kind}, which predicts "
            "no law"
        )
    if predicts(config) == (kind in ("none", "partition")):
        raise ConfigError(
            f"target.advantage: is {config.target.advantage} with a critic of kind {kind}; gae and "
            "rank need a critic, and the others need none"
        )
    if config.target.advantage == "rank" and (config.risk != "neutral" or kind == "scalar"):
        raise ConfigError(
            f"target.advantage: is rank with risk {config.risk} and a critic of kind {kind}; it "
            "takes the whole law, so risk must be neutral and the critic must predict a law"
        )
    if config.target.advantage == "rank" and config.target.advantage_clip:
        raise ConfigError(
            f"target.advantage_clip: is {config.target.advantage_clip}, must be 0 with "
            "target.advantage = rank, which lies in [-1, 1] whatever the rewards"
        )
    if kind == "value_flow" and config.critic.location and not config.coef.mean:
        raise ConfigError(
            "coef.mean: is 0, must be above 0 with critic.location, which learns by it alone"
        )
    if (config.policy.loss == "trajectory_balance") != (kind == "partition"):
        raise ConfigError(
            f"policy.loss: is {config.policy.loss} with a critic of kind {kind}; "
            "trajectory_balance needs partition, and partition trains by it alone"
        )
    if config.target.advantage in ("group", "group_mean") and config.rollout.samples < 2:
        raise ConfigError(
            f"rollout.samples: is 1, must be at least 2 for target.advantage = "
            f"{config.target.advantage}, which compares the answers to one prompt"
        )
    if config.target.winsorise and not predicts(config):
        raise ConfigError(
            f"target.winsorise: is {config.target.winsorise}, must be 0 without a critic, whose "
            "values it takes"
        )
    low, high = config.critic.return_low, config.critic.return_high
    if (low is None) != (high is None):
        given, missing = ("low", "high") if high is None else ("high", "low")
        raise ConfigError(f"critic.return_{missing}: is not given, but critic.return_{given} is")
    if low is not None and not low < high:
        raise ConfigError(f"critic.return_low: is {low}, must be below critic.return_high = {high}")
    if config.data is not None and config.task is not None:
        raise ConfigError(f"task: is {config.task}, but data gives the prompts; give one of them")
    if config.data is not None and not config.reward:
        raise ConfigError(
            "reward: is not given, must say what scores the prompts of data: FILE.py:FUNCTION or "
            "a reward model's directory"
        )
    if config.eval_data is not None and config.data is None:
        raise ConfigError(
            f"eval_data: is {config.eval_data}, but a task brings its own held-out prompts; it "
            "goes with data"
        )
    if config.reward_weights and len(config.reward_weights) != len(config.reward):
        raise ConfigError(
            f"reward_weights: has {len(config.reward_weights)} numbers, must have one for each of "
            f"the {len(config.reward)} rewards"
        )
    answers = config.rollout.prompts * config.rollout.samples
    if config.policy.minibatches > answers:
        raise ConfigError(
            f"policy.minibatches: is {config.policy.minibatches}, must be at most the "
            f"{answers} answers of a step"
        )


def predicts(config: Config) -> bool:
    """Whether advantages are made from the values of a critic."""
    return config.target.advantage in ("gae", "rank")
