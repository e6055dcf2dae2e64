"""Commands about one run, or some: ``dfpo train`` and its like. Each loads what it needs when it
runs, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dfpo.config import ConfigError, build_config, load_yaml, stored_settings
from dfpo.config.flags import Command, Parser, add_settings, count, positive
from dfpo.config.rules import only_read
from dfpo.run.records import is_complete, read_metrics

TRAIN_EPILOG = """\
examples:
  dfpo train                                   train DFPO on the shipped three-domain suite
  dfpo train --noise flip=0.3 --seed 1         the same with three in ten rewards flipped
  dfpo train --algorithm ppo --noise flip=0.3  the scalar-critic baseline on the same draws
  dfpo train --model DIR --data prompts.jsonl --reward score.py:reward
                                               your model, your prompts, your reward
  dfpo train --config runs/NAME/config.yaml    the same run again
  dfpo train --resume runs/NAME                go on where a run stopped, bit for bit
  dfpo train --help-all                        every setting, each choice on a line of its own

A YAML file holds the same settings, nested (critic: {width: 64}) or dotted (critic.width: 64);
flags win over the file, the file over the algorithm's preset.
"""
# What may change when a run goes on: how long and how it is watched, never what it computes.
RESUMABLE = (
    "steps", "checkpoint_every", "max_unscored_steps", "eval.patience", "trackers", "plots",
    "push_to_hub", "quiet", "device", "threads", "answers_every", "answers_kept",
)  # fmt: skip


def add_train(parser: Parser, everything: bool) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    parser.add_argument(
        "--resume", type=Path, metavar="RUN",
        help="directory of a run to continue, bit for bit",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="foretell time and memory, write nothing",
    )  # fmt: skip
    add_settings(parser, everything=everything)


def run_train(args: argparse.Namespace) -> None:
    own = ("command", "config", "resume", "dry_run")
    flags = {k: v for k, v in vars(args).items() if k not in own}
    if args.dry_run and args.resume is not None:
        raise ConfigError("dry-run: is for a new run, must not be given with --resume")
    if args.resume is not None:
        settings = _resumed_settings(args, flags)
    else:
        settings = (_settings_of_file(args.config, flags) if args.config else {}) | flags

    config = build_config(settings)
    if args.resume is not None and is_complete(args.resume, config):
        done = len(read_metrics(args.resume))
        ended_early = done < config.steps
        more = "--eval.patience 0 would go on" if ended_early else "--steps N would go on to N"
        print(f"{args.resume}: finished after {done} steps; {more}")
        return
    if args.dry_run:
        from dfpo.run.dry_run import dry_run

        if said := dry_run(config):
            print(said)
        return
    from dfpo.run.train import train

    train(config, args.resume)


def _settings_of_file(path: Path, flags: dict[str, Any]) -> dict[str, Any]:
    """What the file says. Where a flag names another algorithm than the file, the same file makes
    the baseline: what that algorithm does not read is left out, and said."""
    settings = load_yaml(path)
    if "algorithm" not in flags:
        return settings
    kept = only_read(settings, {"algorithm": flags["algorithm"]})
    if left := [name for name in settings if name not in kept]:
        print(f"{path}: {', '.join(left)} left out: {flags['algorithm']} does not read it")
    return kept


def _resumed_settings(args: argparse.Namespace, flags: dict[str, Any]) -> dict[str, Any]:
    if args.config is not None:
        raise ConfigError(f"config: is {args.config}, but a resumed run has its own config.yaml")
    for name in flags:
        if name not in RESUMABLE:
            raise ConfigError(
                f"{name}: cannot change in a resumed run, only {', '.join(RESUMABLE)} can"
            )
    return stored_settings("resume", args.resume) | flags


EVAL_EPILOG = """\
examples:
  dfpo eval runs/NAME                          on the run's own held-out prompts and reward
  dfpo eval runs/NAME --json                   the same for a script
  dfpo eval DIR --data prompts.jsonl --reward score.py:reward
                                               any model directory on a file of prompts
"""
# What an evaluation depends on.
EVALUATED = (
    "device", "attention", "threads", "task", "data", "eval_data",
    "reward.functions", "reward.weights",
    "rollout.max_new_tokens", "rollout.function", "eval.prompts", "eval.batch_size", "eval.seed",
    "eval.samples", "eval.pass_at", "eval.right", "eval.temperature", "eval.top_p", "eval.top_k",
    "eval.stop",
)  # fmt: skip


def add_eval(parser: Parser, everything: bool) -> None:
    parser.add_argument("target", metavar="RUN_OR_MODEL", help="directory of a run, or of a model")
    parser.add_argument("--show", type=count, default=0, metavar="N", help="print N greedy answers")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_settings(parser, chosen=EVALUATED, everything=True)


def run_eval(args: argparse.Namespace) -> None:
    flags = {k: v for k, v in vars(args).items() if k not in ("command", "target", "show", "json")}
    target = Path(args.target)
    settings: dict[str, Any] = {}
    if (target / "config.yaml").is_file():
        settings = stored_settings("target", target)
        if "data" in flags:
            settings |= {"task": None, "eval_data": None}
        if "task" in flags:
            settings |= {"data": None, "eval_data": None, "reward.functions": ()}

    config = build_config(settings | {"model": str(target)} | flags)
    from dfpo.run.eval_command import evaluate_target

    print(evaluate_target(target, config, args.show, args.json))


def add_show(parser: Parser, everything: bool) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="directory of a run")
    parser.add_argument(
        "--step", type=count, metavar="N", help="of this step (default: the last one kept)"
    )
    parser.add_argument("--domain", metavar="NAME", help="of this domain alone")
    sides = parser.add_mutually_exclusive_group()
    sides.add_argument("--right", action="store_true", help="right answers alone")
    sides.add_argument("--wrong", action="store_true", help="wrong answers alone")
    parser.add_argument(
        "--most", type=positive, default=10, metavar="N", help="answers at most (default: 10)"
    )


def run_show(args: argparse.Namespace) -> None:
    from dfpo.run.show import show

    right = True if args.right else False if args.wrong else None
    print(show(args.run, step=args.step, domain=args.domain, right=right, most=args.most))


def add_report(parser: Parser, everything: bool) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="directory of a run")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="where to write (default: report.html, in the run where there is one)",
    )  # fmt: skip
    parser.add_argument(
        "--live", action="store_true",
        help="write nothing, and show the page to this machine's browser while runs go on",
    )  # fmt: skip
    parser.add_argument(
        "--port", type=count, default=0, metavar="N", help="of --live (default: a free one)"
    )


def run_report(args: argparse.Namespace) -> None:
    from dfpo.run.report.page import NAME, write_report

    if args.live:
        if args.output is not None:
            raise ConfigError(f"output: is {args.output}, but --live writes nothing")
        from dfpo.run.report.live import serve

        serve(args.runs, args.port)
        return
    first = args.runs[0] / NAME if len(args.runs) == 1 else Path(NAME)
    print(write_report(args.runs, args.output or first))


def add_runs(parser: Parser, everything: bool) -> None:
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, nargs="?", default=Path("runs"),
        help="where to look (default: runs)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_runs(args: argparse.Namespace) -> None:
    from dfpo.run.listing import list_runs, runs_json, runs_table

    listed = list_runs(args.folder)
    print(runs_json(listed) if args.json else runs_table(listed))


def add_merge(parser: Parser, everything: bool) -> None:
    parser.add_argument(
        "target", metavar="RUN_OR_ADAPTER", type=Path, help="a run trained with LoRA"
    )
    parser.add_argument("output", metavar="DIR", type=Path, help="directory of the new model")


def run_merge(args: argparse.Namespace) -> None:
    from dfpo.run.merge import merge

    merge(args.target, args.output)
    print(args.output)


MEMORY_EPILOG = """\
examples:
  dfpo memory --model my-model --answers 64 --length 512 --device cuda
  dfpo memory --model config.json --lora.rank 16 --micro-tokens 8192 --device cuda
  dfpo memory --model config.json --processes 8 --shard --gradient-checkpointing true --device cuda
"""
# What the memory of a run depends on.
WEIGHED = (
    "algorithm", "device", "dtype", "model", "micro_tokens", "gradient_checkpointing", "lora.rank",
    "lora.alpha", "lora.targets", "policy.minibatches", "critic.kind", "critic.num_quantiles",
    "critic.width", "critic.heads",
)  # fmt: skip


def add_memory(parser: Parser, everything: bool) -> None:
    for name, default, what in (
        ("answers", 64, "answers of a step: rollout.prompts times rollout.samples"),
        ("length", 512, "tokens of the longest answer: rollout.max_new_tokens"),
        ("prompt-length", 256, "tokens of the longest prompt"),
        ("processes", 1, "processes, one a device; what is printed is for each"),
    ):
        parser.add_argument(
            f"--{name}", type=positive, default=default, metavar="N", help=f"{what} ({default})"
        )
    parser.add_argument(
        "--shard", nargs="?", const="true", default="false", metavar="BOOL",
        help="each process holds a share of models and optimisers",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes")
    add_settings(parser, chosen=WEIGHED, everything=True)


def run_memory(args: argparse.Namespace) -> None:
    own = ("command", "answers", "length", "prompt_length", "processes", "json")
    settings = {k: v for k, v in vars(args).items() if k not in own}
    if "model" not in settings:
        raise ConfigError("model: is not given, must be a model's directory or its config.json")
    known = {"rollout.max_new_tokens": args.length, "reward.low": 0.0, "reward.high": 1.0}
    config = build_config(known | settings)
    from dfpo.run.memory import forecast_report

    print(forecast_report(config, args.answers, args.prompt_length, args.processes, args.json))


def add_info(parser: Parser, everything: bool) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_info(args: argparse.Namespace) -> None:
    from dfpo.run.info import collect_info, describe_info

    info = collect_info()
    print(json.dumps(info, indent=2) if args.json else describe_info(info))


COMMANDS = {
    "train": Command(
        help="train a policy with a value-flow critic, or a baseline",
        description="Train a policy by PPO with a value-flow critic (DFPO), or a baseline.",
        add_arguments=add_train,
        run=run_train,
        usage="dfpo train [--config FILE] [--SETTING VALUE ...]",
        epilog=TRAIN_EPILOG,
    ),
    "eval": Command(
        help="score a run or a model on held-out prompts",
        description="Accuracy or reward, sampled and greedy, per domain, in and out of domain.",
        add_arguments=add_eval,
        run=run_eval,
        usage="dfpo eval RUN_OR_MODEL [--json] [--SETTING VALUE ...]",
        epilog=EVAL_EPILOG,
    ),
    "show": Command(
        help="print answers that a run kept, coloured by value",
        description=(
            "Print some of a run's answers with what they were told and what the critic thought."
        ),
        add_arguments=add_show,
        run=run_show,
        usage="dfpo show RUN [--step N] [--domain NAME] [--right | --wrong] [--most N]",
    ),
    "report": Command(
        help="write one or several runs as an HTML page",
        description=(
            "Curves, kept answers coloured by value, noise, settings, plots: one file, no network."
        ),
        add_arguments=add_report,
        run=run_report,
        usage="dfpo report RUN [RUN ...] [-o FILE | --live [--port N]]",
    ),
    "runs": Command(
        help="list the runs in a folder and how far each is",
        description="List runs with their state, steps and last rewards, the latest at the end.",
        add_arguments=add_runs,
        run=run_runs,
        usage="dfpo runs [FOLDER] [--json]",
    ),
    "merge": Command(
        help="write the model of a run with LoRA as a plain one",
        description=(
            "Work an adapter into its base model's weights, and save what any trainer or engine "
            "reads."
        ),
        add_arguments=add_merge,
        run=run_merge,
        usage="dfpo merge RUN_OR_ADAPTER DIR",
    ),
    "memory": Command(
        help="foretell the peak memory of a run from a model's config.json",
        description=(
            "Peak memory of a run on a model that need not be there: its configuration is enough."
        ),
        add_arguments=add_memory,
        run=run_memory,
        usage="dfpo memory --model DIR_OR_CONFIG [--answers N] [--length L] [--SETTING VALUE ...]",
        epilog=MEMORY_EPILOG,
    ),
    "info": Command(
        help="versions, backends of the kernels, device",
        description="What is installed here and which backend answers which operator.",
        add_arguments=add_info,
        run=run_info,
    ),
}
