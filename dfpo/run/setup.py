"""Configuration -> everything a run works with, checked before anything is written."""

from __future__ import annotations

import copy
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from dfpo.config import Config, ConfigError
from dfpo.config.draws import Draws, Stream
from dfpo.config.noise import Noise, parse_noise
from dfpo.config.types import Answers, Row
from dfpo.method.critics import build_critic
from dfpo.method.update import Learner
from dfpo.rewards.functions import Reward, RewardError
from dfpo.rewards.sources import load_reward
from dfpo.rewards.spaces import RewardSpace
from dfpo.rollout.adapters import add_adapters, check_peft, keep_frozen_in, name_base, root_of
from dfpo.rollout.collect import noisy_rewards
from dfpo.rollout.compiled import compile_layers
from dfpo.rollout.engines import EngineError
from dfpo.rollout.functions import RolloutError, load_rollout
from dfpo.rollout.play import play
from dfpo.rollout.policy import (
    SMALL_MODEL,
    checkpoint_gradients,
    compute_dtype,
    compute_in,
    context_length,
    load_policy,
    set_compute_dtype,
    shipped_policy,
)
from dfpo.rollout.processes import Processes
from dfpo.rollout.sampler import Sampler
from dfpo.rollout.sharding import shard
from dfpo.rollout.tokens import check_tokenizer, decode, encode
from dfpo.run.defaults import complete, with_told_range
from dfpo.run.evaluate import metric_to_judge_by
from dfpo.run.given import Given
from dfpo.run.hub import check_hub
from dfpo.run.model_checks import check_model
from dfpo.run.records import choose_run
from dfpo.run.shared_reward import shared_reward
from dfpo.run.stop import RunError
from dfpo.run.trackers import check_trackers
from dfpo.tasks.source import Source, open_source

PROBED_PROMPTS = 16
NOTHING = Given()


@dataclass(frozen=True)
class Setup:
    """One run's parts; the models and optimisers change, what they are does not."""

    config: Config  # complete: every setting has its value
    run: Path
    tokenizer: PreTrainedTokenizerBase
    policy: PreTrainedModel
    sampler: Sampler  # of the policy's answers
    first: Sampler  # the policy before training, and what samples its answers
    critic: torch.nn.Module
    policy_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer | None  # None: the critic has nothing of its own
    generator: torch.Generator
    source: Source
    reward: Reward
    noise: Noise
    space: RewardSpace
    given: Given

    @property
    def learner(self) -> Learner:
        """The parts that an update changes."""
        names = [field.name for field in dataclasses.fields(Learner)]
        return Learner(**{name: getattr(self, name) for name in names})


def set_up(config: Config, run: Path | None, given: Given = NOTHING) -> Setup:
    """Loads and checks all that the configuration names, or that is given in its place; writes
    nothing. ``run`` is the directory of a run to continue, None for a new one. Raises
    ConfigError."""
    policy, tokenizer, source, reward = load_parts(config, given)
    device = policy.device
    noise = parse_noise(config.noise)
    if noise.vote and source.extract is None:
        raise ConfigError(
            f"noise: is {config.noise}, but votes need a task whose final answers can be compared: "
            "a built-in suite or benchmarks"
        )

    if config.lora.rank:
        policy, first_policy = add_adapters(policy, config, has_trunk(config))
        keep_frozen_in(policy.root, compute_dtype(config.dtype, device))
    else:
        first_policy = copy.deepcopy(policy)

    check_trackers(config)
    check_hub(config)
    new = Processes.here().from_lead(lambda: run or choose_run(config))
    config = dataclasses.replace(config, micro_tokens=micro_tokens(config, policy))
    function = load_rollout(config, given.rollout)
    at_once = sampled_tokens(config.micro_tokens, policy.device.type)
    sampler, first = (
        Sampler.of(model, tokenizer, engine, at_once, function, config.rollout.engine_memory)
        for model, engine in ((policy, config.rollout.engine), (first_policy, "transformers"))
    )
    check_model(sampler, encode(tokenizer, source.training(0, 1)[0]["prompt"]))
    place(policy, config)
    answers, probed = probe_reward(reward, source, sampler, config)
    config = complete(config, policy, probed[probed.isfinite()])
    if noise.hides_range and config.reward.told_low is None:
        told = noisy_rewards(
            probed.to(device), answers,
            noise=noise, reward=reward, first=first, config=config, step=0,
        )  # fmt: skip
        config = with_told_range(config, told[told.isfinite()].cpu())
    judged_by = metric_to_judge_by(config, source.held_out)
    config = dataclasses.replace(
        config, eval=dataclasses.replace(config.eval, metric=judged_by), **given.stored(new)
    )
    if config.gradient_checkpointing:
        checkpoint_gradients(root_of(policy))
    if config.lora.rank:
        name_base(policy, Path(config.model or shipped_policy(config.task)))
    critic = build_critic(first_policy, config)
    trunk = getattr(critic, "trunk", None)

    if isinstance(trunk, torch.nn.Module):
        set_compute_dtype(trunk, compute_dtype(config.dtype, device))
        if config.gradient_checkpointing:
            checkpoint_gradients(trunk)

    place(critic.to(device), config, ("estimate", "loss"))
    place(first_policy, config)
    if config.compile:
        for model in (root_of(policy), critic, first_policy):
            compile_layers(model)
    policy_optimizer, critic_optimizer = build_optimizers(policy, critic, config)
    generator = torch.Generator(device).manual_seed(config.seed)
    return Setup(
        config=config,
        run=new,
        tokenizer=tokenizer,
        policy=policy,
        sampler=sampler,
        first=first,
        critic=critic,
        policy_optimizer=policy_optimizer,
        critic_optimizer=critic_optimizer,
        generator=generator,
        source=source,
        reward=reward,
        noise=noise,
        space=RewardSpace.of(config),
        given=given,
    )


def has_trunk(config: Config) -> bool:
    """Whether the critic is a language model's trunk and a head."""
    return config.critic.kind not in ("none", "partition")


def place(model: torch.nn.Module, config: Config, methods: tuple[str, ...] = ()) -> None:
    """Leaves each process its share of a model, where ``shard`` says so."""
    parameter = next(model.parameters(), None)
    if config.shard and Processes.here().count > 1 and parameter is not None:
        shard(model, parameter.device, compute_dtype(config.dtype, parameter.device), methods)


def build_optimizers(
    policy: PreTrainedModel, critic: torch.nn.Module, config: Config
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
    """One for the policy and one for the critic, unless the critic's parameters, if any, are
    trained by the policy's loss."""
    policy_groups = parameter_groups(policy, config.policy.learning_rate, config.weight_decay)
    own = parameter_groups(critic, config.critic.learning_rate, config.weight_decay)
    if not has_trunk(config):
        return torch.optim.AdamW(policy_groups + own, fused=True), None

    critic_optimizer = torch.optim.AdamW(own, fused=True)
    return torch.optim.AdamW(policy_groups, fused=True), critic_optimizer


def parameter_groups(
    model: torch.nn.Module, rate: float | None, decay: float
) -> list[dict[str, Any]]:
    """A model's parameters for an optimiser; with a decay those that are vectors, which are biases,
    norms and the like, in a group of their own that has none. No group where there are none."""
    parameters = list(model.parameters())
    groups = [(parameters, 0.0)]
    if decay:
        matrices = [parameter for parameter in parameters if parameter.dim() > 1]
        vectors = [parameter for parameter in parameters if parameter.dim() <= 1]
        groups = [(matrices, decay), (vectors, 0.0)]
    return [{"params": params, "lr": rate, "weight_decay": own} for params, own in groups if params]


def load_parts(
    config: Config, given: Given = NOTHING
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Source, Reward]:
    """What training and ``dfpo eval`` share: policy, prompts and rewards, checked, on the device
    that each process has."""
    if config.lora.rank:
        check_peft()
    device = start_processes(config)
    set_seed(config.seed)
    dtype = compute_dtype(config.dtype, device)
    model = config.model or shipped_policy(config.task)

    if given.model is not None:
        policy, tokenizer = given.model
        # Adapters go into the model itself, which stays the user's.
        policy = copy.deepcopy(policy) if config.lora.rank else policy
        compute_in(policy, dtype)
    else:
        merge = not config.lora.rank
        policy, tokenizer = load_policy(model, config.attention, dtype, merge=merge)

    set_threads(config, policy)
    policy = policy.to(device)
    chat = tokenizer.chat_template is not None
    source = open_source(config, chat, given.rows, given.held_out)
    reward = shared_reward(
        lambda: load_reward(config, source.verifier, device, source.extract, given.rewards),
        source.extract,
    )
    held_out = [
        row for splits in source.held_out.values() for rows in splits.values() for row in rows
    ]
    known = source.rows or source.training(0, config.rollout.prompts)
    check_tokenizer(tokenizer, [row["prompt"] for row in [*known, *held_out][:PROBED_PROMPTS]])
    check_prompts([*known, *held_out], policy, tokenizer, config)

    return policy, tokenizer, source, reward


def micro_tokens(config: Config, policy: PreTrainedModel) -> int:
    """``config.micro_tokens``, or what suits the model and its device: more makes nothing faster.
    Of a small model the calls take the time, not the tokens."""
    if config.micro_tokens:
        return config.micro_tokens
    return usual_micro_tokens(policy.num_parameters(), policy.device.type)


def usual_micro_tokens(parameters: int, device: str) -> int:
    if parameters < SMALL_MODEL:
        return 65536
    return 1024 if device == "cpu" else 32768


def sampled_tokens(micro_tokens: int, device: str) -> int:
    """How many are sampled at once. Nothing stays of them but keys and values, and on a CPU a batch
    of an eighth takes twice as long. A GPU's memory is for the keys and values of long answers."""
    return (16 if device == "cpu" else 1) * micro_tokens


def start_processes(config: Config) -> torch.device:
    """The device of this process; under ``torchrun`` or ``accelerate launch`` the processes meet
    here. Raises ConfigError where the device is not there, or where the launcher's configuration
    asks for what only this run's settings can say."""
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
    if device != "cpu" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))

    try:
        accelerator = Accelerator(cpu=device == "cpu")
    # What a launcher's configuration asks for may not be installed, or not be possible here.
    except (ImportError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"accelerate: cannot start as its configuration asks: {reason}") from None

    check_launcher(accelerator)
    return accelerator.device


def check_launcher(accelerator: Accelerator) -> None:
    """What an accelerate configuration may not ask for: it would be left out in silence."""
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in known:
        raise ConfigError(
            f"accelerate: its configuration asks for {accelerator.distributed_type.value}, must be "
            "plain processes (MULTI_GPU or MULTI_CPU); memory is shared out by --shard"
        )

    if accelerator.mixed_precision != "no":
        raise ConfigError(
            f"accelerate: its configuration asks for {accelerator.mixed_precision}, must leave "
            "mixed precision to this run's --dtype"
        )

    if accelerator.gradient_accumulation_steps != 1:
        raise ConfigError(
            "accelerate: its configuration or environment asks for "
            f"{accelerator.gradient_accumulation_steps} gradient accumulation steps, must be 1: "
            "gradients are accumulated over what --micro-tokens makes of a minibatch"
        )


def set_threads(config: Config, policy: PreTrainedModel) -> None:
    """``config.threads``; where that is 0, one for a small model, torch's choice for others."""
    if config.threads:
        torch.set_num_threads(config.threads)
    elif policy.num_parameters() < SMALL_MODEL:
        torch.set_num_threads(1)


def check_prompts(
    rows: list[Row],
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: Config,
) -> None:
    """Every prompt must be tokens that the model has, and with its longest answer fit into the
    model's context."""
    limit = context_length(policy, tokenizer)
    room = limit - config.rollout.max_new_tokens
    known = policy.get_input_embeddings().num_embeddings
    for number, row in enumerate(rows, start=1):
        ids = encode(tokenizer, row["prompt"])
        length = len(ids)
        if max(ids) >= known or tokenizer.pad_token_id >= known:
            raise ConfigError(
                f"model: its tokenizer gives token {max(*ids, tokenizer.pad_token_id)}, must be "
                f"below {known}, the tokens that the model has"
            )
        if length > room:
            raise ConfigError(
                f"prompt {number} of {config.data or config.task or 'suite'} has {length} tokens, "
                f"must be at most {room}: the model's context of {limit} less "
                f"rollout.max_new_tokens = {config.rollout.max_new_tokens}; it starts "
                f"{str(row['prompt'])[:60]!r}"
            )


def probe_reward(
    reward: Reward,
    source: Source,
    sampler: Sampler,
    config: Config,
) -> tuple[Answers, Tensor]:  # [N]
    """Scores the policy's answers to a few prompts of the first step, in which nothing may fail.

    Raises ConfigError naming the reward and what it did. Returns the answers and their scores, NaN
    for None.
    """
    rows = source.training(0, min(config.rollout.prompts, PROBED_PROMPTS))
    length = config.rollout.max_new_tokens
    ids = torch.arange(len(rows), device=sampler.policy.device)
    draws = Draws(config.seed, Stream.SAMPLING, 0, ids)
    temperature = config.rollout.temperature
    try:
        samples, rows = play(sampler, rows, length, draws=draws, temperature=temperature)
    except (EngineError, RolloutError) as error:
        raise ConfigError(str(error)) from error
    completions, token_ids = decode(sampler.tokenizer, samples)

    try:
        values = reward(rows, completions, token_ids, strict=True).values
    except RewardError as error:
        raise ConfigError(f"reward: {error}") from error

    if not values.isfinite().any():
        raise RunError(
            f"reward: {', '.join(reward.names)} scores none of {len(rows)} answers to the first "
            "prompts (None for all), so there is nothing to learn from"
        )

    return Answers(rows=rows, texts=completions, token_ids=token_ids, sample_ids=ids), values
