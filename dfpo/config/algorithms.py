"""The table of algorithms: each is a set of settings over the defaults of ``dfpo.config.settings``.

The loop is one; what differs is the critic, its targets and the weights of its losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Algorithm:
    """A preset: what it is, where it comes from, and the settings that make it."""

    summary: str
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)


CRITIC_FREE = {"critic.kind": "none", "critic.warmup_steps": 0}
# Dual clip is a bound that their sources do not have.
PLAIN_CLIP = {"policy.dual_clip": 0.0}
GAE_TARGETS = {"target.kind": "gae"}
RANK = {"target.advantage": "rank"}

ALGORITHMS: dict[str, Algorithm] = {
    "dfpo": Algorithm(
        "value-flow critic of rewards through their running distribution function; the advantage "
        "is the chance to be above the predicted distribution, less the chance to be below. No "
        "range to know and no bound to choose",
        "arXiv 2602.05890; corrections, advantage and space are this project's",
        {**RANK, "reward.space": "cdf"},
    ),
    "dfpo-rank": Algorithm(
        "dfpo on rewards as they are told",
        "ablation of dfpo; McGraw and Wong 1992 as a measure of effect",
        RANK,
    ),
    "dfpo-mean": Algorithm(
        "value-flow critic whose advantage is that of its mean, on rewards as they are told: where "
        "the size of a reward counts, and what risk reads",
        "arXiv 2602.05890; corrections are this project's",
    ),
    "dfpo-paper": Algorithm(
        "value-flow critic as literally summarised: one field, one-step readout, quantile-wise "
        "GAE targets, shared noise, tail means",
        "arXiv 2602.05890 with the forms of 2512.03847 and 2510.07650",
        {
            "critic.channels": 1,
            "critic.linear_mean": False,
            "critic.readout": "one_step",
            "critic.coupling": "shared_noise",
            "critic.weight_mode": "vf",
            "critic.risk_form": "tail_mean",
            "target.kind": "gae",
            "target.path_lam": 0.0,
            "coef.path": 1.0,
            "coef.consistency": 0.1,
            "coef.quantile": 0.0,
            "coef.mean": 0.0,
            "coef.mean_shift": 0.05,
        },
    ),
    "dfpo-expected": Algorithm(
        "dfpo-mean's flow taught the expected return alone: what the distribution adds is missing",
        "control of dfpo-mean; flows on expected values: arXiv 2509.06863, 2603.04333",
        {"target.kind": "expected"},
    ),
    "ppo": Algorithm(
        "the same loop with a scalar critic, linear in the trunk's states",
        "arXiv 1707.06347, GAE of 1506.02438, dual clip of 1912.09729",
        {"critic.kind": "scalar", **GAE_TARGETS},
    ),
    "ppo-ridge": Algorithm(
        "ppo whose critic has the flow head's conditioner: what the deeper head adds",
        "control of dfpo",
        {"critic.kind": "scalar", "critic.conditioner": True, **GAE_TARGETS},
    ),
    "ppo-clipped": Algorithm(
        "ppo with bounded advantages: what a bound adds",
        "control of dfpo",
        # Advantages of rewards within their range seldom leave half of it: tighter than 1, or this
        # would be ppo wherever no reward lies outside.
        {"critic.kind": "scalar", "target.advantage_clip": 0.5, **GAE_TARGETS},
    ),
    "ppo-winsorised": Algorithm(
        "ppo with each reward cut to a window around the value predicted for it",
        "control of dfpo; winsorising: Tukey 1962, 'The future of data analysis'",
        {"critic.kind": "scalar", "target.winsorise": 0.75, **GAE_TARGETS},
    ),
    "ppo-cdf": Algorithm(
        "ppo on rewards through their running distribution function: a rank without a critic's "
        "distribution",
        "control of dfpo; ranks as scores: Conover and Iman 1981, 'Rank transformations'",
        {"critic.kind": "scalar", "reward.space": "cdf", **GAE_TARGETS},
    ),
    "ppo-domain": Algorithm(
        "ppo on rewards standardised by the running mean and spread of their domain",
        "control of dfpo; running scales of several tasks: arXiv 1602.07714",
        {
            "critic.kind": "scalar",
            "reward.space": "standard",
            "reward.space_by": "domain",
            **GAE_TARGETS,
        },
    ),
    "ppo-hl-gauss": Algorithm(
        "ppo whose critic classifies: bins of the expected return, by cross-entropy",
        "arXiv 2403.03950",
        {"critic.kind": "categorical", **GAE_TARGETS},
    ),
    "vc-ppo": Algorithm(
        "ppo whose critic is pretrained for longer and learns whole returns, with shorter traces "
        "for the policy",
        "arXiv 2503.01491",
        {
            "critic.kind": "scalar",
            "critic.warmup_steps": 30,
            "target.target_lam": 1.0,
            **GAE_TARGETS,
        },
    ),
    "ppo-backward": Algorithm(
        "ppo told the rates of flips, which it takes off the rewards: a ceiling, nobody knows them",
        "arXiv 2510.00915",
        {"critic.kind": "scalar", "target.correction": "backward", **GAE_TARGETS},
    ),
    "reinforce-forward": Algorithm(
        "no critic: score function weighted by the known rate of false negatives: a ceiling",
        "arXiv 2510.00915",
        {"target.advantage": "forward", **PLAIN_CLIP, **CRITIC_FREE},
    ),
    "grpo": Algorithm(
        "no critic: rewards standardised within the answers to one prompt, a mean per answer",
        "arXiv 2402.03300",
        {
            "target.advantage": "group",
            "policy.average": "answer",
            **PLAIN_CLIP,
            **CRITIC_FREE,
        },
    ),
    "dr-grpo": Algorithm(
        "grpo without the two divisions that bias it, by spread and by length, and without KL",
        "arXiv 2503.20783",
        {
            "target.advantage": "group_mean",
            "policy.average": "constant",
            "policy.kl_coef": 0.0,
            **PLAIN_CLIP,
            **CRITIC_FREE,
        },
    ),
    "qae": Algorithm(
        "grpo whose baseline is a quantile of the prompt's rewards in place of their mean",
        "arXiv 2509.22611",
        {
            "target.advantage": "group_quantile",
            "policy.average": "answer",
            **PLAIN_CLIP,
            **CRITIC_FREE,
        },
    ),
    "rloo": Algorithm(
        "no critic: reward, KL taken off, less the mean of its prompt's other answers",
        "arXiv 2402.14740; without clip where a step is one update",
        {
            "target.advantage": "leave_one_out",
            "target.kl_penalty": 0.01,
            "policy.kl_coef": 0.0,
            "policy.average": "constant",
            **PLAIN_CLIP,
            **CRITIC_FREE,
        },
    ),
    "reinforce++": Algorithm(
        "no critic: reward to go with a KL penalty per token, whitened over the whole batch",
        "arXiv 2501.03262",
        {
            "target.advantage": "return",
            "target.kl_penalty": 0.01,
            "policy.kl_coef": 0.0,
            **PLAIN_CLIP,
            **CRITIC_FREE,
        },
    ),
    "robust-ppo": Algorithm(
        "ppo with the least of four scalar heads as its value",
        "Robust-Bellman PPO, a baseline of arXiv 2512.03847, of which 'min aggregation' is known",
        {"critic.kind": "scalar", "critic.heads": 4, **GAE_TARGETS},
    ),
    "dvpo": Algorithm(
        "an ensemble of three quantile heads with tail, shift, shape and consistency terms",
        "arXiv 2512.03847 as reconstructed from public summaries; kappa of dfpo",
        {
            "critic.kind": "quantile",
            "critic.heads": 3,
            "critic.risk_form": "tail_mean",
            "coef.consistency": 1.0,
            "coef.mean": 0.0,
            "coef.risk": 0.1,
            "coef.mean_shift": 0.1,
            "coef.tail_shape": 0.1,
            "critic.curvature": 1.0,
            **GAE_TARGETS,
        },
    ),
    "flowrl": Algorithm(
        "no critic: trajectory balance towards the reward's tilt of the first policy, with a "
        "learned partition function",
        "arXiv 2509.15207",
        {
            "policy.loss": "trajectory_balance",
            "policy.clip_high": 0.28,
            "target.advantage": "group",
            **CRITIC_FREE,
            "critic.kind": "partition",
        },
    ),
}
