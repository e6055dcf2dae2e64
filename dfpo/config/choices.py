"""The tables of what a run can be made of: critics, policy losses, advantages, engines.

To add one, write a file or a function and a row (CONTRIBUTING.md walks through each).
"""

from __future__ import annotations

from dfpo.config.spaces import SPACES
from dfpo.config.tables import Choice

_TRUNK = ("critic.learning_rate", "critic.warmup_steps", "critic.warmup_epochs")
_CLIPPED = (
    "policy.average", "policy.dual_clip", "policy.kl_coef", "policy.importance_clip",
)  # fmt: skip
_RATIO = ("policy.clip", "policy.clip_high")
_VALUES = ("target.lam", "target.bootstrap_on_truncation", "target.winsorise", "risk")
_BOUND = ("target.advantage_clip",)
_CORRECTED = ("target.correction",)

CRITICS: dict[str, Choice] = {
    "value_flow": Choice(
        "a flow from base noise to the distribution of returns: the value flow",
        "dfpo.method.critics.value_flow:build",
        (
            *_TRUNK, "critic.clip_returns", "critic.num_quantiles", "critic.width",
            "critic.steps", "critic.method", "critic.channels", "critic.linear_mean",
            "critic.readout", "critic.coupling", "critic.weight_mode",
            "critic.weight_temperature", "critic.risk_form", "critic.tail",
            "critic.lower_contraction", "critic.curvature", "critic.kappa", "coef.*",
            "target.path_lam", "target.target_lam", "target.kind",
        ),
    ),
    "scalar": Choice(
        "PPO's: the expected return, from one linear head or the least of several",
        "dfpo.method.critics.scalar:build",
        (
            *_TRUNK, "critic.heads", "critic.conditioner", "critic.width", "target.target_lam",
            "target.kind",
        ),
    ),
    "quantile": Choice(
        "DVPO's: quantiles of the return, from an ensemble of heads",
        "dfpo.method.critics.quantile:build",
        (
            *_TRUNK, "critic.heads", "critic.num_quantiles", "critic.width", "critic.tail",
            "critic.risk_form", "critic.curvature", "critic.kappa", "coef.*",
            "target.target_lam", "target.kind",
        ),
    ),
    "categorical": Choice(
        "HL-Gauss's: the expected return from bins, by cross-entropy",
        "dfpo.method.critics.categorical:build",
        (*_TRUNK, "critic.bins", "critic.smoothing", "target.target_lam", "target.kind"),
    ),
    "none": Choice(
        "no critic: for advantages that need no value",
        "dfpo.method.critics.none:build",
        ("critic.warmup_steps",),
    ),
    "partition": Choice(
        "log Z of a prompt, which trajectory balance learns beside the policy",
        "dfpo.method.critics.partition:build",
        ("critic.learning_rate", "critic.warmup_steps"),
    ),
}  # fmt: skip

POLICY_LOSSES: dict[str, Choice] = {
    "clip": Choice(
        "PPO's clipped objective and a KL term",
        "dfpo.method.policy_losses:clip",
        (*_RATIO, *_CLIPPED),
    ),
    "trajectory_balance": Choice(
        "FlowRL's squared residual of trajectory balance; needs critic.kind = partition",
        "dfpo.method.policy_losses:trajectory_balance",
        (*_RATIO, "policy.beta"),
    ),
}

ADVANTAGES: dict[str, Choice] = {
    "gae": Choice(
        "generalised advantage estimation from rewards and values",
        "dfpo.method.advantages:gae",
        (*_VALUES, *_BOUND, *_CORRECTED),
    ),
    "rank": Choice(
        "the chance that the return is above the predicted distribution, less that it is below",
        "dfpo.method.advantages:rank",
        (*_VALUES, *_CORRECTED),
    ),
    "group": Choice(
        "GRPO's: reward less its prompt's mean, over its prompt's standard deviation",
        "dfpo.method.advantages:group",
        _BOUND,
    ),
    "group_quantile": Choice(
        "QAE's: reward less its prompt's quantile, over its prompt's standard deviation",
        "dfpo.method.advantages:group_quantile",
        (*_BOUND, "target.quantile"),
    ),
    "leave_one_out": Choice(
        "RLOO's: reward less the mean of its prompt's other answers",
        "dfpo.method.advantages:leave_one_out",
        _BOUND,
    ),
    "forward": Choice(
        "reward less 1 - the known rate of false negatives, for rewards of 0 and 1",
        "dfpo.method.advantages:forward",
    ),
    "group_mean": Choice(
        "Dr. GRPO's: reward less its prompt's mean",
        "dfpo.method.advantages:group_mean",
        _BOUND,
    ),
    "return": Choice(
        "REINFORCE++'s: the reward that is still to come",
        "dfpo.method.advantages:reward_to_go",
        _BOUND,
    ),
}

# The first that knows a word of reward.functions takes it.
REWARD_SOURCES: dict[str, Choice] = {
    "python": Choice("a function given in Python", "dfpo.rewards.sources:from_python"),
    "model": Choice("a reward model's directory", "dfpo.rewards.sources:from_model"),
    "file": Choice("FILE.py:FUNCTION, in TRL's signature", "dfpo.rewards.sources:from_file"),
}

ENGINES: dict[str, Choice] = {
    "transformers": Choice(
        "transformers' generate, from the policy itself; answers that have ended leave the batch",
        "dfpo.rollout.engines.hf_generate:build",
    ),
    "continuous": Choice(
        "transformers' continuous batching, in pages and without padding; tells log-probabilities",
        "dfpo.rollout.engines.continuous:build",
    ),
    "vllm": Choice(
        "vLLM on the policy's GPU, asleep in training; tells log-probabilities; never run on a GPU",
        "dfpo.rollout.engines.vllm:build",
    ),
}

# By transformers' names; each is a formula of its get_scheduler that needs the warm-up alone.
SCHEDULES: dict[str, Choice] = {
    "constant": Choice("as set, from the first step to the last"),
    "constant_with_warmup": Choice("rises over schedule_warmup steps and stays"),
    "linear": Choice("falls in a straight line to 0 at the end"),
    "cosine": Choice("falls along half a cosine to 0 at the end"),
    "inverse_sqrt": Choice("falls with the square root of the step"),
}

# Which setting chooses a row of which table.
TABLES: dict[str, dict[str, Choice]] = {
    "critic.kind": CRITICS,
    "policy.loss": POLICY_LOSSES,
    "target.advantage": ADVANTAGES,
    "reward.space": SPACES,
}
