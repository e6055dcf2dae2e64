"""The training loop, one line a stage."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_model
from tabulate import tabulate
from tqdm import tqdm
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from dfpo.config import Config, ConfigError
from dfpo.critic import build_critic
from dfpo.data import evaluation_rows, training_rows
from dfpo.diagnostics import describe
from dfpo.evaluate import Scores, average, evaluate
from dfpo.examples import find_examples, predict
from dfpo.log import MetricsLog, create_run, write_json
from dfpo.noise import parse_noise
from dfpo.plots import ValueRecord, plot_run
from dfpo.policy import SHIPPED_POLICY, load_policy
from dfpo.rollout import collect
from dfpo.targets import compute_targets
from dfpo.tasks import reward
from dfpo.update import update

# Below this many parameters a token is too little work to share between threads.
SMALL_MODEL = 2_000_000
# Steps from whose rollouts the calibration plot is made: late, but not a single one.
CALIBRATION_SHARE = 0.25


def train(config: Config) -> Path:
    """Runs the configuration to its end and returns the run's directory."""
    started, started_cpu = time.perf_counter(), time.process_time()
    accelerator = make_accelerator(config)
    path = config.model or SHIPPED_POLICY
    policy, tokenizer = load_policy(path)
    first_policy, _ = load_policy(path)
    set_threads(config, policy)
    critic = build_critic(policy, config)
    noise = parse_noise(config.noise)
    run = create_run(config)
    log = MetricsLog(run / "metrics.jsonl")

    policy_optimizer = torch.optim.AdamW(
        policy.parameters(), lr=config.policy.learning_rate, weight_decay=0.0
    )
    critic_optimizer = torch.optim.AdamW(
        critic.parameters(), lr=config.critic.learning_rate, weight_decay=0.0
    )
    policy, critic, first_policy, policy_optimizer, critic_optimizer = accelerator.prepare(
        policy, critic, first_policy, policy_optimizer, critic_optimizer
    )
    generator = torch.Generator(accelerator.device).manual_seed(config.seed)

    held_out = evaluation_rows(config.eval.seed, config.eval.prompts)
    print(f"{run}: {config.algorithm}, {describe_policy(policy)}, noise {config.noise}")
    before = evaluate(policy, tokenizer, held_out, reward, config)
    examples = find_examples(policy, tokenizer, held_out, reward, config)
    fans = predict(critic, examples, config)
    records: list[ValueRecord] = []
    bar = tqdm(range(config.steps), desc="train", unit="step")
    for step in bar:
        clock = Clock()
        rows = training_rows(config.seed, step, config.rollout.prompts)
        with clock("rollout"):
            rollout = collect(policy, first_policy, tokenizer, rows, reward, noise, config, step)
        with clock("targets"):
            estimate = critic.estimate(rollout.samples, generator)
            targets = compute_targets(rollout, estimate, config, step)
        with clock("update"):
            losses = update(
                accelerator, policy, critic, policy_optimizer, critic_optimizer,
                rollout, targets, config, generator,
                train_policy=step >= config.critic.warmup_steps,
            )  # fmt: skip
        metrics = describe(rollout, estimate, targets, config)
        tokens = int(rollout.samples.mask.sum())
        log.append({"step": step, "tokens": tokens, **metrics, **losses, **clock.report(tokens)})
        bar.set_postfix(
            reward=f"{metrics['reward/noisy']:.2f}",
            accuracy=f"{metrics['reward/clean']:.2f}",
            kl=f"{metrics['kl']:.3f}",
        )
        if step + 1 == config.critic.warmup_steps:
            # The last moment at which the examples are the policy's own.
            fans = predict(critic, examples, config)
        if step >= int(config.steps * (1 - CALIBRATION_SHARE)):
            records.append(ValueRecord.from_rollout(rollout, estimate))

    after = evaluate(policy, tokenizer, held_out, reward, config)
    save(policy, tokenizer, critic, run)
    plot_run(run / "plots", config, log.records, before, after, records, fans)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    write_json(run / "summary.json", summarise(before, after, seconds, cpu_seconds))
    print(closing_table(before, after))
    print(f"{seconds:.0f} s, {cpu_seconds:.0f} CPU-s; plots, policy and metrics in {run}")
    return run


def make_accelerator(config: Config) -> Accelerator:
    """Puts the run on its device; raises ConfigError where that device is not there."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in ("cpu", "cuda") and not device.startswith("cuda:"):
        raise ConfigError(f"device: is {config.device!r}, must be auto, cpu, cuda or cuda:N")
    if device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"device: is {config.device!r}, but torch finds no CUDA device here")
    if ":" in device:
        torch.cuda.set_device(device)
    return Accelerator(cpu=device == "cpu")


def set_threads(config: Config, policy: PreTrainedModel) -> None:
    """``config.threads``; where that is 0, one for a small model, torch's choice for others."""
    if config.threads:
        torch.set_num_threads(config.threads)
    elif sum(p.numel() for p in policy.parameters()) < SMALL_MODEL:
        torch.set_num_threads(1)


class Clock:
    """Wall seconds of the stages of one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - started

    def report(self, tokens: int) -> dict[str, float]:
        total = sum(self.seconds.values())
        stages = {f"perf/{stage}_seconds": value for stage, value in self.seconds.items()}
        return {**stages, "perf/seconds": total, "perf/tokens_per_second": tokens / total}


def describe_policy(policy: PreTrainedModel) -> str:
    millions = sum(p.numel() for p in policy.parameters()) / 1e6
    return f"{type(policy).__name__} of {millions:.2f} M parameters on {policy.device}"


def save(policy: PreTrainedModel, tokenizer: Any, critic: torch.nn.Module, run: Path) -> None:
    policy.save_pretrained(run / "policy")
    tokenizer.save_pretrained(run / "policy")
    save_model(critic, str(run / "critic.safetensors"))


def summarise(before: Scores, after: Scores, seconds: float, cpu_seconds: float) -> dict[str, Any]:
    """Accuracies at temperature 1 unless the key says greedy; averages over domains."""

    def averages(scores: Scores) -> dict[str, float]:
        return {
            "id": average(scores, "id"),
            "ood": average(scores, "ood"),
            "id_greedy": average(scores, "id", "greedy"),
            "ood_greedy": average(scores, "ood", "greedy"),
        }

    return {
        "before": averages(before),
        "after": averages(after),
        "domains": {name: {"before": before[name], "after": after[name]} for name in before},
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def closing_table(before: Scores, after: Scores) -> str:
    """Accuracy before and after, per domain and split, sampled and greedy."""
    rows = []
    for split, label in (("id", "in domain"), ("ood", "out of domain")):
        for name in [*before, "mean"]:
            pair = [
                average(s, split, mode) if name == "mean" else s[name][split][mode]
                for mode in ("sampled", "greedy")
                for s in (before, after)
            ]
            rows.append([label, name, *(f"{value:.3f}" for value in pair)])
    headers = ["", "domain", "T=1 before", "T=1 after", "greedy before", "greedy after"]
    return tabulate(rows, headers=headers, disable_numparse=True)
