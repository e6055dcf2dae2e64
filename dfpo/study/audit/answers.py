"""Fresh answers of a run's policy, what training would be told of them, and what the run's critic
predicts once it has seen them whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from dfpo.config import ConfigError
from dfpo.config.types import Estimate, Rollout
from dfpo.method.critics import estimate_values
from dfpo.rewards.noise import prompt_text
from dfpo.rollout.collect import collect, last_tokens
from dfpo.run.setup import Setup
from dfpo.tasks.source import column_of

# Steps from here on are never trained, so that no critic has been taught these answers' rewards.
UNREACHED = 2**20


@dataclass(frozen=True)
class Judged:
    """N answers that have a reward."""

    prompts: list[str]
    texts: list[str]
    groups: list[str]  # value of the column that the audit is by
    told: np.ndarray  # [N]
    clean: np.ndarray  # [N], the same as told but for noise that the run itself injects
    quantiles: np.ndarray  # [N, Q], predicted before the last token, in units of told rewards

    @property
    def mean(self) -> np.ndarray:  # [N]
        return self.quantiles.mean(1)

    @property
    def prompt_numbers(self) -> np.ndarray:  # [N]
        """Which prompt is answered, from 0."""
        return np.unique(self.prompts, return_inverse=True)[1]


@torch.no_grad()
def judge_answers(setup: Setup, answers: int, by: str) -> Judged:
    """At least ``answers`` answers to training prompts. Raises ConfigError where none has a
    reward."""
    config = setup.config
    a_step = config.rollout.prompts * config.rollout.samples
    parts = []

    for step in range(UNREACHED, UNREACHED + math.ceil(answers / a_step)):
        rollout = collect(
            setup.sampler, setup.first, setup.source.training(step, config.rollout.prompts),
            reward=setup.reward, noise=setup.noise, config=config, step=step,
        )  # fmt: skip
        if len(rollout.answers):
            parts.append(_judged(rollout, _estimate(setup, rollout, step), by))

    if not parts:
        raise ConfigError(f"reward: scores none of {answers} answers, must score one to audit it")
    return Judged(
        *([value for part in parts for value in getattr(part, name)] for name in LISTS),
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ARRAYS),
    )


LISTS = ("prompts", "texts", "groups")
ARRAYS = ("told", "clean", "quantiles")


def _estimate(setup: Setup, rollout: Rollout, step: int) -> Estimate:
    generator = torch.Generator(setup.policy.device).manual_seed(step)
    estimate = estimate_values(
        setup.critic, rollout.samples, generator, setup.config.micro_tokens or 0
    )
    return setup.space.readout(estimate, rollout.answers.rows)


def _judged(rollout: Rollout, estimate: Estimate, by: str) -> Judged:
    # The state after the last token is never taught; before it all of the answer is seen but its
    # end token.
    last = last_tokens(rollout.samples.mask)
    return Judged(
        prompts=[prompt_text(row["prompt"]) for row in rollout.answers.rows],
        texts=rollout.answers.texts,
        groups=[column_of(row, by) for row in rollout.answers.rows],
        told=rollout.rewards.double().cpu().numpy(),
        clean=rollout.clean_rewards.double().cpu().numpy(),
        quantiles=estimate.quantiles[last].double().cpu().numpy(),
    )
