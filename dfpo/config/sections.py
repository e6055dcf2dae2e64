"""The sections of the configuration: ``critic`` of ``critic.width``, and its like."""

from __future__ import annotations

from dataclasses import dataclass

from dfpo.config.choices import ADVANTAGES, CRITICS, ENGINES, POLICY_LOSSES
from dfpo.config.options import option
from dfpo.config.spaces import SPACES
from dfpo.config.tables import Choice
from dfpo_kernels.integrate_flow.reference import METHODS
from dfpo_kernels.value_flow import head as flow_head


@dataclass(frozen=True)
class RolloutConfig:
    """What one step samples."""

    prompts: int = option(16, "prompts per step", low=1, common=True)
    samples: int = option(4, "answers sampled per prompt", low=1, common=True)
    max_new_tokens: int = option(64, "longest answer, in tokens", low=1, common=True)
    engine: str = option("transformers", "what samples answers in training", table=ENGINES)
    engine_memory: float = option(
        0.3,
        "share of the GPU's memory that engine vllm takes while it samples",
        low=0.01,
        high=0.99,
    )
    function: str | None = option(
        None,
        "FILE.py:FUNCTION that plays the answers: several turns, tools, an environment; default "
        "one answer of the policy to each prompt",
        common=True,
    )
    temperature: float = option(
        1.0, "sampling temperature in training", low=1e-3, high=100.0, common=True
    )


@dataclass(frozen=True)
class PolicyConfig:
    """The policy's loss and its optimiser."""

    loss: str = option("clip", "loss of the policy", table=POLICY_LOSSES)
    average: str = option(
        "token",
        "mean of the clipped objective over all answer tokens; over each answer's, then over "
        "answers; or their sum over answers times rollout.max_new_tokens",
        choices=("token", "answer", "constant"),
    )

    learning_rate: float | None = option(
        None,
        "AdamW step size of the policy; default 1.5e-4 below 2 M parameters, 1e-6 above, 2e-5 with "
        "LoRA",
        low=0.0,
        common=True,
    )
    clip: float = option(0.2, "ratio clip: the ratio counts within [1 - clip, 1 + clip]", low=0.0)
    clip_high: float | None = option(
        None, "upper ratio clip in place of clip: at most 1 + clip_high", low=0.0
    )
    beta: float = option(
        15.0, "trajectory balance: how strongly the reward tilts the policy", low=0.0
    )
    dual_clip: float = option(
        3.0, "bound on the ratio where the advantage is negative; 0 switches it off", low=0.0
    )
    kl_coef: float = option(
        0.001, "weight of the k3 estimate of KL to the first policy", low=0.0, common=True
    )
    importance_clip: float = option(
        2.0,
        "truncated importance sampling: bound on the weight exp(trainer - engine) of a token whose "
        "log-probability an engine or a rollout function tells; 0 switches the weights off",
        low=0.0,
    )
    epochs: int = option(1, "passes over each step's rollouts", low=1)
    minibatches: int = option(1, "optimiser steps per pass", low=1)


@dataclass(frozen=True)
class TargetConfig:
    """From rewards and values to advantages and critic targets."""

    gamma: float = option(1.0, "discount per token", low=0.0, high=1.0)
    advantage: str = option(
        "gae", "what the policy's loss takes as advantage", table=ADVANTAGES, common=True
    )
    lam: float = option(0.95, "GAE trace of the advantage", low=0.0, high=1.0)
    target_lam: float = option(0.95, "trace of the critic's targets", low=0.0, high=1.0)
    kind: str = option(
        "lambda_mixture",
        "targets of the critic",
        table={
            "lambda_mixture": Choice("draws from the mixture of n-step return distributions"),
            "gae": Choice("the average of n-step returns, quantile by quantile"),
            "expected": Choice("the mean of that average alone"),
        },
    )
    advantage_clip: float = option(
        0.0, "bound on advantages, in ranges of the reward; 0 switches it off", low=0.0
    )
    winsorise: float = option(
        0.0,
        "cuts each reward to its predicted value -+ so many ranges of the reward; 0 switches it "
        "off",
        low=0.0,
    )
    quantile: float = option(
        0.4, "level of the quantile of a prompt's rewards that group_quantile takes off them",
        low=0.0, high=1.0,
    )  # fmt: skip
    correction: str = option(
        "none",
        "what is done to told rewards about flips whose rates are known, from noise",
        table={
            "none": Choice("nothing"),
            "backward": Choice("(r - false positives) / (1 - false positives - negatives)"),
        },
    )
    kl_penalty: float = option(
        0.0, "taken off each token's reward, times the k1 estimate of KL to the first policy",
        low=0.0,
    )  # fmt: skip
    path_lam: float = option(
        0.95, "path term: chance to look one token further; 0 is one token", low=0.0, high=0.999
    )
    bootstrap_on_truncation: bool = option(
        False, "an answer cut at max_new_tokens continues with the value of its last state"
    )


@dataclass(frozen=True)
class CriticConfig:
    """The critic: a copy of the policy's trunk and a head."""

    kind: str = option("value_flow", "kind of critic", table=CRITICS, common=True)
    heads: int = option(
        1, "heads of a scalar critic, whose least is its value, or of a quantile critic, whose "
        "mean is", low=1,
    )  # fmt: skip
    bins: int = option(51, "bins of a categorical critic", low=2)
    smoothing: float = option(
        0.75, "deviation of a categorical critic's smoothed targets, in bins", low=0.01
    )
    conditioner: bool = option(
        False, "scalar critic: read the value off the flow head's conditioner, not the trunk"
    )
    learning_rate: float | None = option(
        None,
        "AdamW step size of trunk and head; default 1e-3 below 2 M parameters, 1e-5 above",
        low=0.0,
    )
    warmup_steps: int = option(
        15, "first steps in which the critic alone trains", low=0, common=True
    )
    warmup_epochs: int = option(4, "passes over each of those steps' rollouts", low=1)
    clip_returns: bool | None = option(
        None, "clip predicted and target quantiles to that range; default where it is given or "
        "the first rewards are all 0 or 1",
    )  # fmt: skip
    num_quantiles: int = option(32, "quantiles per token", low=1)
    width: int = option(64, "ridge units of the velocity field", low=1)
    steps: int = option(8, "solver steps of the readout", low=1)
    method: str = option("euler", "solver of the readout", choices=METHODS)
    channels: int = option(2, "2: velocity and one-step map; 1: velocity alone", low=1, high=2)
    linear_mean: bool = option(
        True,
        "the mean is a linear value that learns as PPO's does, and the flow leaves the trunk "
        "alone; false: all terms train the trunk, and the mean is the flow's",
    )
    readout: str = option(
        "flow",
        "values from the integrated flow, or from one Euler step",
        choices=flow_head.READOUTS,
    )
    coupling: str = option(
        "quantile",
        "pairing of targets and base noise: sorted, or by a shared index",
        choices=flow_head.COUPLINGS,
    )
    weight_mode: str = option(
        "none", "weight on flow matching from the spread", choices=flow_head.WEIGHT_MODES
    )
    weight_temperature: float = option(
        0.3, "spread at which that weight turns, in units of return_scale", low=0.0
    )
    risk_form: str = option(
        "rockafellar_uryasev", "form of the conditional value risk", choices=flow_head.RISK_FORMS
    )
    tail: float = option(0.1, "fraction of quantiles in each tail", low=0.0, high=0.5)
    lower_contraction: float = option(
        0.0, "moves the lower tail's target towards the mean", low=0.0, high=1.0
    )
    curvature: float = option(0.01, "weight of curvature in the tail-shape term", low=0.0)
    kappa: float = option(0.05, "Huber threshold of the endpoint loss, units of return", low=0.0)


@dataclass(frozen=True)
class LoraConfig:
    """LoRA: one frozen base, and small adapters of their own for policy and critic (peft)."""

    rank: int = option(0, "rank of the adapters; 0 trains all weights", low=0, common=True)
    alpha: float | None = option(
        None, "scale of the adapters, over their rank; default twice the rank", low=0.0
    )
    targets: tuple[str, ...] = option(
        ("all-linear",),
        "layers that get an adapter, by the ends of their names; all-linear is all but the output "
        "layer",
    )


@dataclass(frozen=True)
class RewardConfig:
    """What scores answers, and the range of the scores."""

    functions: tuple[str, ...] = option(
        (),
        "FILE.py:FUNCTION in TRL's signature, or a reward model's directory; several are summed; "
        "default the task's verifier",
        common=True,
    )
    weights: tuple[float, ...] = option((), "weight of each function in that sum; default 1")
    low: float | None = option(
        None,
        "low end of the reward's range; default 0, or measured where rewards leave [0, 1]",
        common=True,
    )
    high: float | None = option(
        None,
        "high end of the reward's range; default 1, or measured where rewards leave [0, 1]",
        common=True,
    )
    told_low: float | None = option(
        None,
        "low end of the range after a noise that leaves it; default measured from the first "
        "answers' told rewards",
    )
    told_high: float | None = option(None, "high end of that range")
    clip: bool = option(False, "cuts each reward to that range")
    space: str = option("raw", "scale in which advantages are made and critics learn", table=SPACES)
    space_by: str | None = option(
        None, "a running map for each value of this column (domain); default one for all rewards"
    )
    space_window: int = option(4096, "latest told rewards that a running map knows", low=2)
    timeout: float = option(
        600.0, "seconds that a function may take for a batch, after which it failed; 0: no limit",
        low=0.0,
    )  # fmt: skip


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation before and after training, on held-out prompts, rewards clean."""

    prompts: int = option(
        200, "prompts per domain and split; 0 switches it off", low=0, common=True
    )
    batch_size: int = option(300, "answers generated at once", low=1)
    samples: int = option(1, "sampled answers to each prompt, beside a greedy one", low=1)
    pass_at: tuple[int, ...] = option(
        (), "k of pass@k, the chance that one of k answers is right; at most eval.samples", low=1
    )
    right: float = option(1.0, "reward from which on an answer is right, for pass@k")
    temperature: float = option(1.0, "temperature of sampled answers", low=1e-3, high=100.0)
    top_p: float = option(
        1.0, "sampled answers: the likeliest tokens with this probability in sum", low=1e-6,
        high=1.0,
    )  # fmt: skip
    top_k: int = option(0, "sampled answers: so many likeliest tokens; 0 for all", low=0)
    stop: tuple[str, ...] = option((), "strings before which an answer ends; \\n is a line's end")
    every: int = option(
        0, "steps between evaluations; 0: before and after training alone", low=0,
        common=True,
    )  # fmt: skip
    metric: str | None = option(
        None,
        "what of an evaluation keep and eval.patience go by: eval/id, eval/ood, or a domain's, as "
        "eval/math/ood; each also with _greedy; default the mean of the first split",
    )
    patience: int = option(
        0, "evaluations in a row without a new best after which the run ends; 0: never", low=0
    )
    examples: int = option(
        20, "prompts per domain searched for a right and a wrong answer to plot; 0 for none", low=0
    )
    seed: int = option(0, "seed of prompts and sampling; the same for every run", low=0)
