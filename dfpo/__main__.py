"""The command line: ``dfpo train`` and its like."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dfpo

if said := dfpo.missing_trainer():
    sys.exit(said)

from dfpo.config import ConfigError, build_config, load_yaml, stored_settings
from dfpo.config.build import options
from dfpo.config.flags import (
    HELP_ALL,
    HelpFormatter,
    Parser,
    add_settings,
    count,
    dashed,
    positive,
)
from dfpo.config.rules import only_read
from dfpo.run.records import is_complete, read_metrics
from dfpo.run.stop import exit_status

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

EVAL_EPILOG = """\
examples:
  dfpo eval runs/NAME                          on the run's own held-out prompts and reward
  dfpo eval runs/NAME --json                   the same for a script
  dfpo eval DIR --data prompts.jsonl --reward score.py:reward
                                               any model directory on a file of prompts
"""

CRITIC_EPILOG = """\
examples:
  dfpo train --steps 50 --critic.warmup-steps 50 --name mine
                                               a critic of a policy that stands still
  dfpo critic runs/mine                        what it knows
  dfpo critic runs/a runs/b --plot critics.png two critics side by side
"""

AUDIT_EPILOG = """\
examples:
  dfpo train --steps 200 --critic.warmup-steps 200 --critic.warmup-epochs 1 --name mine
                                               a critic of a policy that stands still
  dfpo audit runs/mine                         how wrong was its reward, by domain
  dfpo audit runs/mine --by level --show 50    by a column of the data; the 50 most surprising
"""

MEMORY_EPILOG = """\
examples:
  dfpo memory --model my-model --answers 64 --length 512 --device cuda
  dfpo memory --model config.json --lora.rank 16 --micro-tokens 8192 --device cuda
  dfpo memory --model config.json --processes 8 --shard --gradient-checkpointing true --device cuda
"""

COMPARE_EPILOG = """\
examples:
  dfpo compare --quick                         does it work here: two arms, ten minutes of two cores
  dfpo compare recipes/compare.yaml            arms x noises x domains x seeds
  dfpo compare recipes/compare.yaml --seeds 2 --output runs/first
                                               the first two seeds of it
  dfpo tune recipes/compare.yaml               before it: settings of each arm, on one budget

The same command again goes on where it stopped and tries failed cells once more. Settings given as
flags hold for every cell; one that an arm, a noise or a domain sets is refused.
"""

# What may change when a run goes on: how long and how it is watched, never what it computes.
RESUMABLE = (
    "steps", "checkpoint_every", "max_unscored_steps", "eval.patience", "trackers", "plots",
    "push_to_hub", "quiet", "device", "threads", "answers_every", "answers_kept",
)  # fmt: skip
# What a recipe gives, or the grid.
GRID = ("algorithm", "seed", "noise", "name", "runs_dir", "plots", "trackers")
# What the memory of a run depends on.
WEIGHED = (
    "algorithm", "device", "dtype", "model", "micro_tokens", "gradient_checkpointing", "lora.rank",
    "lora.alpha", "lora.targets", "policy.minibatches", "critic.kind", "critic.num_quantiles",
    "critic.width", "critic.heads",
)  # fmt: skip
# What an evaluation depends on.
EVALUATED = (
    "device", "attention", "threads", "task", "data", "eval_data",
    "reward.functions", "reward.weights",
    "rollout.max_new_tokens", "rollout.function", "eval.prompts", "eval.batch_size", "eval.seed",
    "eval.samples", "eval.pass_at", "eval.right", "eval.temperature", "eval.top_p", "eval.top_k",
    "eval.stop",
)  # fmt: skip


def build_parsers(command: str, *, everything: bool = False) -> tuple[Parser, dict[str, Parser]]:
    """The parser of ``dfpo`` and those of its commands. Only ``command`` gets its arguments, since
    those of sft take seconds to import; "completion" needs them all."""
    parser = Parser(
        prog="dfpo", description="Post-train language models on rewards you cannot trust."
    )
    parser.add_argument("--version", action="version", version=f"dfpo {dfpo.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {}

    for name, entry in COMMANDS.items():
        parsers[name] = commands.add_parser(
            name, help=entry.help, description=entry.description, usage=entry.usage,
            epilog=entry.epilog, formatter_class=HelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        if command in (name, "completion"):
            entry.add_arguments(parsers[name], everything)

    return parser, parsers


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


def add_eval(parser: Parser, everything: bool) -> None:
    parser.add_argument("target", metavar="RUN_OR_MODEL", help="directory of a run, or of a model")
    parser.add_argument("--show", type=count, default=0, metavar="N", help="print N greedy answers")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_settings(parser, chosen=EVALUATED, everything=True)


def add_merge(parser: Parser, everything: bool) -> None:
    parser.add_argument(
        "target", metavar="RUN_OR_ADAPTER", type=Path, help="a run trained with LoRA"
    )
    parser.add_argument("output", metavar="DIR", type=Path, help="directory of the new model")


def add_critic(parser: Parser, everything: bool) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="directory of a run")
    parser.add_argument(
        "--answers", type=positive, default=6, metavar="N",
        help="answers per domain whose states are probed (default: 6)",
    )  # fmt: skip
    parser.add_argument(
        "--plays", type=positive, default=64, metavar="N",
        help="plays from each state (default: 64)",
    )  # fmt: skip
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the runs' scores side by side"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write them as an HTML page"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


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


def add_runs(parser: Parser, everything: bool) -> None:
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, nargs="?", default=Path("runs"),
        help="where to look (default: runs)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_audit(parser: Parser, everything: bool) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="directory of a run")
    parser.add_argument(
        "--answers", type=positive, default=1024, metavar="N",
        help="fresh answers to training prompts (default: 1024)",
    )  # fmt: skip
    parser.add_argument(
        "--by", default="domain", metavar="COLUMN",
        help="column whose values are audited apart (default: domain)",
    )  # fmt: skip
    parser.add_argument(
        "--show", type=count, default=10, metavar="N",
        help="print the N most surprising rewards (default: 10)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")


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


def add_compare(parser: Parser, everything: bool) -> None:
    parser.add_argument("--quick", action="store_true", help="the built-in recipe")
    parser.add_argument(
        "--seeds", type=positive, metavar="N", help="the first N of the recipe's seeds alone"
    )
    parser.add_argument(
        "--rows", type=Path, metavar="FILE",
        help="a results.jsonl of the recipe, whose cells are not trained again",
    )  # fmt: skip
    add_tune(parser, everything)


def add_tune(parser: Parser, everything: bool) -> None:
    parser.add_argument(
        "recipe", type=Path, nargs="?", metavar="RECIPE", help="YAML file: docs/compare.md"
    )
    parser.add_argument(
        "--jobs", type=positive, metavar="N", help="cells at a time (default: one a core)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write (default: the recipe's)"
    )
    parser.add_argument(
        "--on", default="local", metavar="WHERE",
        help="where cells run: local, ray, or the address of a Ray cluster (default: local)",
    )  # fmt: skip
    of_cells = [name for name, _, _ in options() if name not in GRID]
    add_settings(parser, chosen=of_cells, everything=everything)


def add_info(parser: Parser, everything: bool) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_sft(parser: Parser, everything: bool) -> None:
    from dfpo.study import starting_policy

    starting_policy.add_arguments(parser)


def add_completion(parser: Parser, everything: bool) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="whose completion")


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


def run_merge(args: argparse.Namespace) -> None:
    from dfpo.run.merge import merge

    merge(args.target, args.output)
    print(args.output)


def run_critic(args: argparse.Namespace) -> None:
    from dfpo.study.probe.command import critic_report, probe_runs, to_json

    reports = probe_runs(args.runs, args.answers, args.plays, args.plot, args.output)
    print(to_json(reports) if args.json else critic_report(reports))


def run_show(args: argparse.Namespace) -> None:
    from dfpo.run.show import show

    right = True if args.right else False if args.wrong else None
    print(show(args.run, step=args.step, domain=args.domain, right=right, most=args.most))


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


def run_runs(args: argparse.Namespace) -> None:
    from dfpo.run.listing import list_runs, runs_json, runs_table

    listed = list_runs(args.folder)
    print(runs_json(listed) if args.json else runs_table(listed))


def run_audit(args: argparse.Namespace) -> None:
    from dfpo.study.audit.command import audit, audit_report, to_json

    audited = audit(args.run, args.answers, args.by)
    print(to_json(audited) if args.json else audit_report(audited, args.show))


def run_memory(args: argparse.Namespace) -> None:
    own = ("command", "answers", "length", "prompt_length", "processes", "json")
    settings = {k: v for k, v in vars(args).items() if k not in own}
    if "model" not in settings:
        raise ConfigError("model: is not given, must be a model's directory or its config.json")
    known = {"rollout.max_new_tokens": args.length, "reward.low": 0.0, "reward.high": 1.0}
    config = build_config(known | settings)
    from dfpo.run.memory import forecast_report

    print(forecast_report(config, args.answers, args.prompt_length, args.processes, args.json))


def run_compare(args: argparse.Namespace) -> None:
    if (args.recipe is None) != args.quick:
        raise ConfigError("recipe: must be given, or --quick instead of it")
    from dfpo.study.compare import compare

    compare(
        args.recipe, args.output, args.seeds, args.jobs, _grid_flags(args), where=args.on,
        rows=args.rows,
    )  # fmt: skip


def run_tune(args: argparse.Namespace) -> None:
    if args.recipe is None:
        raise ConfigError("recipe: must be given")
    from dfpo.study.tune import tune

    tune(args.recipe, args.output, args.jobs, _grid_flags(args), args.on)


def _grid_flags(args: argparse.Namespace) -> dict[str, Any]:
    own = ("command", "recipe", "quick", "jobs", "output", "seeds", "on", "rows")
    return {k: v for k, v in vars(args).items() if k not in own}


def run_info(args: argparse.Namespace) -> None:
    from dfpo.run.info import collect_info, describe_info

    info = collect_info()
    print(json.dumps(info, indent=2) if args.json else describe_info(info))


def run_sft(args: argparse.Namespace) -> None:
    from dfpo.study import starting_policy

    starting_policy.main(args)


def run_completion(args: argparse.Namespace) -> None:
    if importlib.util.find_spec("shtab") is None:
        raise ConfigError("completion: needs shtab, which is not installed: pip install shtab")
    import shtab

    print(shtab.complete(build_parsers("completion")[0], shell=args.shell))


@dataclass(frozen=True)
class Command:
    """One command: its words in ``--help``, its arguments, what it does."""

    help: str
    description: str
    add_arguments: Callable[[Parser, bool], None]
    run: Callable[[argparse.Namespace], None]
    usage: str | None = None
    epilog: str | None = None


COMMANDS = {
    "train": Command(
        "train a policy with a value-flow critic, or a baseline",
        "Train a policy by PPO with a value-flow critic (DFPO), or a baseline.",
        add_train, run_train,
        "dfpo train [--config FILE] [--SETTING VALUE ...]", TRAIN_EPILOG,
    ),
    "eval": Command(
        "score a run or a model on held-out prompts",
        "Accuracy or reward, sampled and greedy, per domain, in and out of domain.",
        add_eval, run_eval,
        "dfpo eval RUN_OR_MODEL [--json] [--SETTING VALUE ...]", EVAL_EPILOG,
    ),
    "show": Command(
        "print answers that a run kept, coloured by value",
        "Print some of a run's answers with what they were told and what the critic thought.",
        add_show, run_show,
        "dfpo show RUN [--step N] [--domain NAME] [--right | --wrong] [--most N]",
    ),
    "report": Command(
        "write one or several runs as an HTML page",
        "Curves, kept answers coloured by value, noise, settings, plots: one file, no network.",
        add_report, run_report,
        "dfpo report RUN [RUN ...] [-o FILE | --live [--port N]]",
    ),
    "runs": Command(
        "list the runs in a folder and how far each is",
        "List runs with their state, steps and last rewards, the latest at the end.",
        add_runs, run_runs,
        "dfpo runs [FOLDER] [--json]",
    ),
    "merge": Command(
        "write the model of a run with LoRA as a plain one",
        "Work an adapter into its base model's weights, and save what any trainer or engine reads.",
        add_merge, run_merge,
        "dfpo merge RUN_OR_ADAPTER DIR",
    ),
    "compare": Command(
        "train a grid of arms, noises, domains and seeds, and compare them",
        "Train a grid of runs; write tables, plots and paired differences.",
        add_compare, run_compare,
        "dfpo compare RECIPE | --quick [--jobs N] [--SETTING VALUE ...]", COMPARE_EPILOG,
    ),
    "tune": Command(
        "choose settings for the arms of a comparison, on one budget",
        "Try each arm's settings on other seeds and noisy held-out rewards.",
        add_tune, run_tune,
        "dfpo tune RECIPE [--jobs N] [--SETTING VALUE ...]", COMPARE_EPILOG,
    ),
    "critic": Command(
        "measure what the critics of some runs know",
        "Plays on from the states of a few answers many times with the run's own policy, and "
        "compares the returns with what the critic predicts. Writes critic.json, critic.html "
        "and plots/critic_*.png into each run.",
        add_critic, run_critic,
        "dfpo critic RUN [RUN ...] [--answers N] [--plays N] [--plot FILE] [-o FILE] [--json]",
        CRITIC_EPILOG,
    ),
    "audit": Command(
        "say how wrong a run's reward is, and where",
        "Samples fresh answers, and compares what training would be told of them with what the "
        "run's critic expects: rates of wrong labels or the spread of rewards by group, and the "
        "most surprising rewards. Writes audit.json and audit.parquet into the run.",
        add_audit, run_audit,
        "dfpo audit RUN [--answers N] [--by COLUMN] [--show N] [--json]", AUDIT_EPILOG,
    ),
    "memory": Command(
        "foretell the peak memory of a run from a model's config.json",
        "Peak memory of a run on a model that need not be there: its configuration is enough.",
        add_memory, run_memory,
        "dfpo memory --model DIR_OR_CONFIG [--answers N] [--length L] [--SETTING VALUE ...]",
        MEMORY_EPILOG,
    ),
    "info": Command(
        "versions, backends of the kernels, device",
        "What is installed here and which backend answers which operator.",
        add_info, run_info,
    ),
    "sft": Command(
        "make the starting policy that ships with dfpo",
        "Fine-tune the small starting policy on a sloppy demonstrator.",
        add_sft, run_sft,
    ),
    "completion": Command(
        "print a completion script for your shell",
        "Completion of commands and flags; for bash: eval \"$(dfpo completion bash)\"",
        add_completion, run_completion,
    ),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; wrong input is one line on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        # What a locale has no letters for is escaped, where it would end a run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = [dashed(word) for word in (sys.argv[1:] if argv is None else argv)]
    everything = HELP_ALL in words
    parser, commands = build_parsers(words[0] if words else "", everything=everything)
    if everything and words[0] in commands:
        commands[words[0]].print_help()
        return 0
    args, unknown = parser.parse_known_args(words)
    if unknown:
        commands[args.command].refuse(unknown[0])

    return exit_status(f"dfpo {args.command}", lambda: COMMANDS[args.command].run(args))


if __name__ == "__main__":
    sys.exit(main())
