"""The configuration: one frozen dataclass tree, filled from a preset, a YAML file and flags.

Precedence, lowest first: defaults here, the algorithm's preset (``algorithms.py``), the YAML file
of ``--config``, flags. Every field carries its meaning, its unit and its bounds, from which
``--help`` and every error message are made.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from dfpo.config.choices import SCHEDULES
from dfpo.config.options import option
from dfpo.config.sections import (
    CriticConfig,
    EvalConfig,
    LoraConfig,
    PolicyConfig,
    RewardConfig,
    RolloutConfig,
    TargetConfig,
)
from dfpo_kernels.value_flow import ValueFlowCoefs

DATA, RECORDS = "data and reward", "records"  # groups of --help
TRACKERS = ("tensorboard", "trackio", "wandb")


@dataclass(frozen=True)
class Config:
    """One run."""

    # No choices, so that a row added to the table counts.
    algorithm: str = option("dfpo", "preset to start from", common=True)
    seed: int = option(
        0, "seed of prompts, sampling, noise and critic", low=0, high=2**31 - 1, common=True
    )
    steps: int = option(60, "training steps; critic warm-up included", low=0, common=True)
    risk: str = option(
        "neutral",
        "risk measure of the value in the advantage: neutral, cvar-lower[=TAIL], "
        "cvar-upper[=TAIL] (tail fraction, default 0.25) or wang[=SHIFT] (default 0.75)",
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N", common=True)
    dtype: str = option(
        "auto",
        "what policy and critic multiply in, their weights stay float32; auto is bfloat16 on a GPU "
        "that has it, else float32",
        choices=("auto", "float32", "bfloat16"),
    )
    micro_tokens: int | None = option(
        None,
        "tokens, padding included, that go through a model at once, in sampling (on a CPU 16 "
        "times as many) and in training; default 65536 below 2 M parameters, else 1024 on a CPU "
        "and 32768 on a GPU",
        low=1,
    )
    gradient_checkpointing: bool = option(
        False, "keep the states between layers alone, and compute what is within them again in "
        "backward: less memory for more time",
    )  # fmt: skip
    compile: bool = option(
        False, "make kernels of the layers of policy and critic by torch.compile, for all but "
        "sampling; needs a C++ compiler, on a GPU triton",
    )  # fmt: skip
    shard: bool = option(
        False,
        "of several processes each holds a share of the models and of their optimisers (FSDP2); "
        "false: each holds all",
    )
    max_grad_norm: float = option(1.0, "gradient clip of policy and critic, each its own", low=0.0)
    schedule: str = option(
        "constant",
        "learning rates of policy and critic over the steps in which each trains, as transformers "
        "names them",
        table=SCHEDULES,
    )
    schedule_warmup: int = option(
        0, "steps in which learning rates rise from 0, part of the schedule", low=0
    )
    weight_decay: float = option(
        0.0, "AdamW's, of all matrices of policy and critic; biases and norms have none", low=0.0
    )
    attention: str = option(
        "auto",
        "attention of the policy; auto takes flash-attn where it is installed and takes the dtype, "
        "else sdpa",
        choices=("auto", "sdpa", "eager", "flash_attention_2"),
    )
    threads: int = option(
        0, "CPU threads; 0 is 1 for models below 2 M parameters and torch's choice above", low=0
    )
    model: str | None = option(
        None,
        "model directory or .gguf file; default the policy that ships with dfpo",
        group=DATA,
        common=True,
    )
    task: str | None = option(
        None,
        "built-in prompts, suite, hard or shared; the first by default; each also with the domains "
        "to train on (hard:science); reasoning_gym:NAME[,KEY=VALUE...]; benchmarks:DIR",
        group=DATA,
        common=True,
    )
    data: str | None = option(
        None,
        "training prompts: a .jsonl, .parquet or .arrow, saved datasets, or a hub name",
        group=DATA,
        common=True,
    )
    stream: bool = option(
        False,
        "reads data as it goes and never whole, by the library datasets; a resumed run reads past "
        "what it has seen",
        group=DATA,
    )
    stream_buffer: int = option(
        1000, "rows among which a stream is shuffled; 1 keeps its order", low=1, group=DATA
    )
    system_prompt: str | None = option(
        None, "system message before each prompt of data; one that has its own keeps it", group=DATA
    )
    eval_data: str | None = option(
        None, "held-out prompts for evaluation; a file of the same form", group=DATA, common=True
    )
    noise: str = option(
        "none",
        "what corrupts the training reward, as in flip=0.3,missing=0.1; parts joined by commas",
        group=DATA,
        common=True,
    )
    max_unscored_steps: int = option(
        5, "steps in a row without one valid reward after which the run stops", low=1, group=DATA
    )
    name: str | None = option(
        None, "name of the run; default the algorithm and the seed", group=RECORDS, common=True
    )
    runs_dir: str = option("runs", "where run directories are made", group=RECORDS, common=True)
    checkpoint_every: int = option(
        1, "steps between checkpoints, from which --resume continues", low=1, group=RECORDS
    )
    checkpoint_keep: int = option(
        2, "checkpoints kept: the last, and those to go back to where it is found broken", low=1,
        group=RECORDS,
    )  # fmt: skip
    keep: str = option(
        "last",
        "best: beside the last policy also the best one, by eval.metric, in RUN/best",
        choices=("last", "best"),
        group=RECORDS,
    )
    answers_every: int = option(
        5, "steps between those of which some answers are kept for dfpo show and dfpo report; 0 "
        "keeps none", low=0, group=RECORDS,
    )  # fmt: skip
    answers_kept: int = option(
        16, "answers kept of each of those steps, chosen whatever their rewards", low=1,
        high=1024, group=RECORDS,
    )  # fmt: skip
    plots: bool = option(True, "draw plots and write report.html at the end", group=RECORDS)
    push_to_hub: str | None = option(
        None, "OWNER/NAME of a model hub's repository that gets the policy and its card at the end",
        group=RECORDS,
    )  # fmt: skip
    quiet: bool = option(False, "say nothing but what is wrong", group=RECORDS)
    trackers: tuple[str, ...] = option(
        (), "who else gets metrics and plots", choices=TRACKERS, group=RECORDS
    )
    lora: LoraConfig = field(default_factory=LoraConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    coef: ValueFlowCoefs = field(default_factory=ValueFlowCoefs)
    eval: EvalConfig = field(default_factory=EvalConfig)
