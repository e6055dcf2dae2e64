"""What no single setting can check: which of them go together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from dfpo.config.algorithms import ALGORITHMS
from dfpo.config.choices import ADVANTAGES, TABLES
from dfpo.config.errors import ConfigError
from dfpo.config.noise import parse_noise
from dfpo.config.risk import parse_risk
from dfpo.config.settings import Config
from dfpo.config.spaces import SPACES
from dfpo.config.tables import readers


def check_read(values: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Raises ConfigError for a setting, of ``values``, that the chosen critic, policy loss and
    advantage do not read and that is not as in the preset, ``usual``, or by default."""
    defaults = default_values()
    chosen = {name: values.get(name, defaults[name]) for name in TABLES}
    for dotted, value in values.items():
        if value == usual.get(dotted, defaults[dotted]) or _has_reader(chosen, dotted):
            continue
        name = next(name for name, table in TABLES.items() if readers(table, dotted))
        reading = ", ".join(readers(TABLES[name], dotted))
        read = ", ".join(TABLES[name][chosen[name]].reads) or "nothing"
        raise ConfigError(
            f"{dotted}: is {value}, but {name} = {chosen[name]} does not read it, only {reading}; "
            f"{chosen[name]} reads {read}"
        )


def only_read(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Those of settings that several arms share which the arm of ``own`` settings reads."""
    algorithm = own.get("algorithm", shared.get("algorithm", Config.algorithm))
    known = isinstance(algorithm, str) and algorithm in ALGORITHMS
    preset = ALGORITHMS[algorithm].settings if known else {}
    values = default_values() | preset | shared | own
    return {
        dotted: value
        for dotted, value in shared.items()
        if dotted in own or _has_reader(values, dotted)
    }


def _has_reader(values: Mapping[str, Any], dotted: str) -> bool:
    tables = [table for table, rows in TABLES.items() if readers(rows, dotted)]
    chosen = [TABLES[table].get(values[table]) for table in tables]
    # A choice that is none is another error's business.
    return not tables or any(choice is None or choice.does_read(dotted) for choice in chosen)


def is_read(config: Config, dotted: str) -> bool:
    """Whether the run's critic, policy loss and advantage leave a use to the setting."""
    return _has_reader(dict(_leaves("", config)), dotted)


def default_values() -> dict[str, Any]:
    """Every setting's default, by dotted name."""
    return dict(_leaves("", Config()))


def _leaves(prefix: str, tree: Any) -> Iterator[tuple[str, Any]]:
    for item in dataclasses.fields(tree):
        value = getattr(tree, item.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(f"{prefix}{item.name}.", value)
        else:
            yield f"{prefix}{item.name}", value


def check_together(config: Config) -> None:
    """Raises ConfigError for settings that are right alone and wrong together."""
    for name, parse in (("noise", parse_noise), ("risk", parse_risk)):
        try:
            parse(getattr(config, name))
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from None

    for check in (
        _check_parts,
        _check_advantage,
        _check_ranges,
        _check_evaluation,
        _check_data,
        _check_step,
    ):
        check(config)


def _check_parts(config: Config) -> None:
    """Critic, risk, schedule and processes."""
    kind = config.critic.kind
    if config.risk != "neutral" and kind not in ("value_flow", "quantile"):
        raise ConfigError(
            f"risk: is {config.risk}, must be neutral with a critic of kind {kind}, which predicts "
            "no distribution"
        )

    if config.schedule == "constant" and config.schedule_warmup:
        raise ConfigError(
            f"schedule_warmup: is {config.schedule_warmup}, must be 0 with schedule = constant; "
            "constant_with_warmup rises first"
        )

    if config.shard and kind == "partition":
        raise ConfigError(
            "shard: is true, must be false with a critic of kind partition, which learns by the "
            "policy's loss and is no model of its own"
        )

    if config.shard and config.lora.rank:
        raise ConfigError(
            "shard: is true, must be false with lora.rank: what is frozen is there once in each "
            "process, and what is trained is small"
        )


def _check_advantage(config: Config) -> None:
    """Advantages and losses beside the critic that they take values from."""
    kind = config.critic.kind
    if predicts(config) == (kind in ("none", "partition")):
        need = " and ".join(readers(ADVANTAGES, "target.lam"))
        raise ConfigError(
            f"target.advantage: is {config.target.advantage} with a critic of kind {kind}; {need} "
            "need a critic, and the others need none"
        )

    point = kind in ("scalar", "categorical")
    if config.target.advantage == "rank" and (config.risk != "neutral" or point):
        raise ConfigError(
            f"target.advantage: is rank with risk {config.risk} and a critic of kind {kind}; it "
            "takes the whole distribution, so risk must be neutral and the critic must predict a "
            "distribution; algorithm dfpo-mean has an advantage that risk reads"
        )

    if config.target.advantage == "rank" and config.target.advantage_clip:
        raise ConfigError(
            f"target.advantage_clip: is {config.target.advantage_clip}, must be 0 with "
            "target.advantage = rank, which lies in [-1, 1] whatever the rewards"
        )

    if kind == "value_flow" and config.critic.linear_mean and not config.coef.mean:
        raise ConfigError(
            "coef.mean: is 0, must be above 0 with critic.linear_mean, which learns by it alone"
        )

    if (config.policy.loss == "trajectory_balance") != (kind == "partition"):
        raise ConfigError(
            f"policy.loss: is {config.policy.loss} with a critic of kind {kind}; "
            "trajectory_balance needs partition, and partition trains by it alone"
        )

    grouped = ("group", "group_quantile", "leave_one_out", "group_mean")
    if config.target.advantage in grouped and config.rollout.samples < 2:
        raise ConfigError(
            f"rollout.samples: is 1, must be at least 2 for target.advantage = "
            f"{config.target.advantage}, which compares the answers to one prompt"
        )

    if config.target.winsorise and not predicts(config):
        raise ConfigError(
            f"target.winsorise: is {config.target.winsorise}, must be 0 without a critic, whose "
            "values it takes"
        )

    _check_correction(config)


def _check_ranges(config: Config) -> None:
    """Ranges of rewards, where a noise leaves them known."""
    _check_range("", config.reward.low, config.reward.high)
    _check_range("told_", config.reward.told_low, config.reward.told_high)
    if config.reward.told_low is not None and not parse_noise(config.noise).hides_range:
        raise ConfigError(
            f"reward.told_low: is {config.reward.told_low}, must be given with a noise that leaves "
            f"the range of rewards alone, which {config.noise} does not; give reward.low"
        )


def _check_evaluation(config: Config) -> None:
    for name, value, usual in (
        ("keep", config.keep, "last"),
        ("eval.patience", config.eval.patience, 0),
        ("eval.metric", config.eval.metric, None),
    ):
        if value != usual and not config.eval.every:
            raise ConfigError(
                f"{name}: is {value}, but eval.every = 0 evaluates before and after training "
                "alone; set eval.every to a number of steps"
            )

    most = max(config.eval.pass_at, default=0)
    if most > config.eval.samples:
        raise ConfigError(
            f"eval.pass_at: is {most}, must be at most eval.samples = {config.eval.samples}, of "
            "which it is estimated"
        )

    if config.eval.every and not config.eval.prompts:
        raise ConfigError(
            f"eval.every: is {config.eval.every}, but eval.prompts = 0 leaves nothing to evaluate"
        )


def _check_data(config: Config) -> None:
    """Where prompts come from, and what scores them."""
    if config.data is not None and config.task is not None:
        raise ConfigError(f"task: is {config.task}, but data gives the prompts; give one of them")

    if config.stream and config.data is None:
        raise ConfigError("stream: is true, must be false without data, which it reads as it goes")

    if config.data is not None and not config.reward.functions:
        raise ConfigError(
            "reward: is not given, must say what scores the prompts of data: FILE.py:FUNCTION or "
            "a reward model's directory"
        )

    if config.eval_data is not None and config.data is None:
        raise ConfigError(
            f"eval_data: is {config.eval_data}, but a task brings its own held-out prompts; it "
            "goes with data"
        )

    if config.reward.weights and len(config.reward.weights) != len(config.reward.functions):
        raise ConfigError(
            f"reward.weights: has {len(config.reward.weights)} numbers, must have one for each of "
            f"the {len(config.reward.functions)} rewards"
        )


def _check_step(config: Config) -> None:
    """How many answers a step has, and who plays them."""
    answers = config.rollout.prompts * config.rollout.samples
    if config.rollout.function is not None and parse_noise(config.noise).vote:
        raise ConfigError(
            f"noise: is {config.noise}, must be without votes with rollout.function: votes "
            "compare single answers of the policy"
        )

    if config.policy.minibatches > answers:
        raise ConfigError(
            f"policy.minibatches: is {config.policy.minibatches}, must be at most the "
            f"{answers} answers of a step"
        )


def _check_correction(config: Config) -> None:
    """Known rates are those of flips alone, of rewards as they are."""
    name, value = "target.correction", config.target.correction
    if config.target.advantage == "forward":
        name, value = "target.advantage", "forward"
    elif value == "none":
        return

    noise = parse_noise(config.noise)
    kinds = {kind for part in (noise, *noise.mixture.values()) for kind in part.levels}
    if kinds - {"flip", "fp", "fn", "missing"}:
        raise ConfigError(f"noise: is {config.noise}, must be of flips alone with {name} = {value}")
    if config.reward.space != "raw":
        raise ConfigError(
            f"reward.space: is {config.reward.space}, must be raw with {name} = {value}, which "
            "knows what flips do to rewards as they are told"
        )
    for part in (noise, *noise.mixture.values()):
        if sum(part.flip_rates) >= 1:
            raise ConfigError(
                f"noise: is {config.noise}, must leave some labels right on average with {name} = "
                f"{value}"
            )


def _check_range(prefix: str, low: float | None, high: float | None) -> None:
    if (low is None) != (high is None):
        given, missing = ("low", "high") if high is None else ("high", "low")
        raise ConfigError(f"reward.{prefix}{missing}: is not given, but reward.{prefix}{given} is")
    if low is not None and not low < high:
        raise ConfigError(
            f"reward.{prefix}low: is {low}, must be below reward.{prefix}high = {high}"
        )


def value_range(config: Config) -> tuple[float, float]:
    """The range that critics are scaled by, and that bounds and windows count in: that of told
    rewards, or that of the space into which they are mapped."""
    reward = config.reward
    if reward.space == "raw":
        hidden = reward.told_low is not None
        return (reward.told_low, reward.told_high) if hidden else (reward.low, reward.high)
    space = SPACES[config.reward.space]
    return space.low, space.high


def is_learned_at_once(config: Config) -> bool:
    """Whether the policy learns from a rollout once and in one piece, so that what its update
    computes first are the log-probabilities of the policy that drew; and nothing asks before."""
    once = config.policy.epochs == config.policy.minibatches == 1
    return once and not config.target.kl_penalty


def predicts(config: Config) -> bool:
    """Whether advantages are made from the values of a critic: then a row reads their trace."""
    return ADVANTAGES[config.target.advantage].does_read("target.lam")
