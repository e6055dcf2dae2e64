"""Processor seconds of each stage of a training step on the shipped policy, printed as JSON.

One rollout is collected and every arm learns from it in turn, so that what differs is the arm. The
environment of the process decides which kernels run, see DFPO_KERNELS.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict

import torch
from transformers.utils import logging

from dfpo.config import build_config
from dfpo.config.noise import Noise
from dfpo.method.critics import build_critic, estimate_values
from dfpo.method.targets import compute_targets
from dfpo.method.update import Learner, update
from dfpo.rewards.functions import Reward
from dfpo.rollout.collect import collect
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy
from dfpo.rollout.sampler import Sampler
from dfpo.tasks import reward
from dfpo.tasks.source import training_rows

ARMS = {
    "ppo": {"algorithm": "ppo"},
    "dfpo Q32": {"algorithm": "dfpo", "critic.num_quantiles": 32},
    "dfpo Q64": {"algorithm": "dfpo", "critic.num_quantiles": 64},
}
SHARED = {"critic.warmup_epochs": 1, "reward.low": 0, "reward.high": 1}
VERIFIER = Reward(("verifier",), (reward,), (1.0,))
STAGES = ("rollout", "estimate", "targets", "critic update", "policy update")


class Arm:
    """What one algorithm needs to take the step again and again."""

    def __init__(self, settings: dict) -> None:
        # One pass in the warm-up too, where the critic alone is updated.
        self.config = build_config({**settings, **SHARED})
        self.policy, self.tokenizer = load_policy(SHIPPED_POLICY)
        self.critic = build_critic(self.policy, self.config)
        self.optimizers = [
            torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
            for model in (self.policy, self.critic)
        ]
        self.generator = torch.Generator().manual_seed(0)
        self.learner = Learner(self.policy, self.critic, *self.optimizers, self.generator)

    def collect(self):
        rows = training_rows(0, 0, self.config.rollout.prompts)
        sampler = Sampler.of(self.policy, self.tokenizer)
        return collect(
            sampler, sampler, rows,
            reward=VERIFIER, noise=Noise(), config=self.config, step=0,
        )  # fmt: skip

    def learn(self, rollout, seconds: dict[str, list[float]]) -> None:
        """Every stage but the rollout; appends to ``seconds``."""
        marks = [time.process_time()]
        estimate = estimate_values(self.critic, rollout.samples, self.generator)
        marks.append(time.process_time())
        targets = compute_targets(rollout, estimate, self.config, 0)
        marks.append(time.process_time())
        for train_policy in (False, True):
            update(self.learner, rollout, targets, self.config, 0, train_policy=train_policy)
            marks.append(time.process_time())
        spans = [end - start for start, end in zip(marks, marks[1:], strict=False)]
        # The second update did the critic's part again.
        spans[3] -= spans[2]
        for stage, span in zip(STAGES[1:], spans, strict=True):
            seconds[stage].append(span)


def measure(names: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Arm -> stage -> median seconds; the rollout is the same for all."""
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    arms = {name: Arm(ARMS[name]) for name in names}
    first = arms[names[0]]
    started = time.process_time()
    rollout = first.collect()
    rollout_seconds = [time.process_time() - started]
    seconds = {name: defaultdict(list) for name in names}
    for arm in arms.values():
        arm.learn(rollout, defaultdict(list))
    for _ in range(rounds):
        started = time.process_time()
        first.collect()
        rollout_seconds.append(time.process_time() - started)
        for name, arm in arms.items():
            arm.learn(rollout, seconds[name])
    shared = statistics.median(rollout_seconds)
    return {
        name: {"rollout": shared} | {k: statistics.median(v) for k, v in stages.items()}
        for name, stages in seconds.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arms", nargs="*", default=list(ARMS))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(json.dumps(measure(options.arms, options.rounds)))
