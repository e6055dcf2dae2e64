"""The command line: ``dfpo train`` and its like."""

from __future__ import annotations

import argparse
import json
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfpo.config import ConfigError, build_config, load_yaml, stored_settings
from dfpo.config.build import describe, options, sections, suggestion
from dfpo.run.records import is_complete
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
    "steps", "checkpoint_every", "max_unscored_steps", "trackers", "plots", "device", "threads",
)  # fmt: skip
# What a recipe gives, or the grid.
GRID = ("algorithm", "seed", "noise", "name", "runs_dir", "plots", "trackers")
# What an evaluation depends on.
EVALUATED = (
    "device", "attention", "threads", "task", "data", "eval_data", "reward", "reward_weights",
    "rollout.max_new_tokens", "eval.prompts", "eval.batch_size", "eval.seed",
)  # fmt: skip


class Parser(argparse.ArgumentParser):
    """One line on a wrong flag, with the nearest right one, and exit status 2."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def refuse(self, word: str) -> Any:
        flag = word.partition("=")[0]
        known = {name: None for action in self._actions for name in action.option_strings}
        self.error(f"{flag}: is no option{suggestion(flag, known)}")


def build_parsers(command: str) -> tuple[Parser, dict[str, Parser]]:
    """The parser of ``dfpo`` and those of its commands; arguments for ``command`` alone, since
    those of sft take seconds to import."""
    parser = Parser(
        prog="dfpo", description="Post-train language models on rewards you cannot trust."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    formatter = argparse.RawDescriptionHelpFormatter
    train = commands.add_parser(
        "train", help="train a policy with a value-flow critic, or a baseline",
        description="Train a policy by PPO with a value-flow critic (DFPO), or a baseline.",
        usage="dfpo train [--config FILE] [--SETTING VALUE ...]", epilog=TRAIN_EPILOG,
        formatter_class=formatter, allow_abbrev=False,
    )  # fmt: skip
    evaluation = commands.add_parser(
        "eval", help="score a run or a model on held-out prompts",
        description="Accuracy or reward, sampled and greedy, per domain, in and out of domain.",
        usage="dfpo eval RUN_OR_MODEL [--json] [--SETTING VALUE ...]", epilog=EVAL_EPILOG,
        formatter_class=formatter, allow_abbrev=False,
    )  # fmt: skip
    comparison = commands.add_parser(
        "compare", help="train a grid of arms, noises, domains and seeds, and compare them",
        description="Train a grid of runs; write tables, plots and paired differences.",
        usage="dfpo compare RECIPE | --quick [--jobs N] [--SETTING VALUE ...]",
        epilog=COMPARE_EPILOG, formatter_class=formatter, allow_abbrev=False,
    )  # fmt: skip
    tuning = commands.add_parser(
        "tune", help="choose settings for the arms of a comparison, on one budget",
        description="Try each arm's settings on other seeds and noisy held-out rewards.",
        usage="dfpo tune RECIPE [--jobs N] [--SETTING VALUE ...]",
        epilog=COMPARE_EPILOG, formatter_class=formatter, allow_abbrev=False,
    )  # fmt: skip
    info = commands.add_parser(
        "info", help="versions, backends of the kernels, device",
        description="What is installed here and which backend answers which operator.",
        formatter_class=formatter, allow_abbrev=False,
    )  # fmt: skip
    info.add_argument("--json", action="store_true", help="print JSON")
    critic = commands.add_parser(
        "critic", help="measure what the critics of some runs know",
        description="Plays on from the states of a few answers many times with the run's own "
        "policy, and compares the returns with what the critic predicts. Writes critic.json and "
        "plots/critic_*.png into each run.",
        usage="dfpo critic RUN [RUN ...] [--answers N] [--plays N] [--plot FILE] [--json]",
        epilog=CRITIC_EPILOG, formatter_class=formatter, allow_abbrev=False,
    )  # fmt: skip
    warm_start = commands.add_parser(
        "sft", help="make the starting policy that ships with dfpo",
        description="Fine-tune the small starting policy on a sloppy demonstrator.",
        formatter_class=formatter, allow_abbrev=False,
    )  # fmt: skip
    if command == "train":
        train.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
        train.add_argument(
            "--resume", type=Path, metavar="RUN",
            help=f"directory of a run to continue; only {', '.join(map(_flag, RESUMABLE))} may be "
            "given with it",
        )  # fmt: skip
        _add_settings(train, None)
    elif command == "eval":
        evaluation.add_argument(
            "target", metavar="RUN_OR_MODEL", help="directory of a run, or of a model"
        )
        evaluation.add_argument(
            "--show", type=_count, default=0, metavar="N", help="print N greedy answers"
        )
        evaluation.add_argument("--json", action="store_true", help="print JSON")
        _add_settings(evaluation, EVALUATED)
    elif command == "critic":
        critic.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="directory of a run")
        critic.add_argument(
            "--answers", type=_positive, default=6, metavar="N",
            help="answers per domain whose states are probed (default: 6)",
        )  # fmt: skip
        critic.add_argument(
            "--plays", type=_positive, default=64, metavar="N",
            help="plays from each state (default: 64)",
        )  # fmt: skip
        critic.add_argument(
            "--plot", type=Path, metavar="FILE", help="draw the runs' scores side by side"
        )
        critic.add_argument("--json", action="store_true", help="print JSON")
    elif command in ("compare", "tune"):
        _add_grid(comparison if command == "compare" else tuning)
    elif command == "sft":
        from dfpo.study import starting_policy

        starting_policy.add_arguments(warm_start)
    return parser, {
        "train": train, "eval": evaluation, "critic": critic, "compare": comparison,
        "tune": tuning, "info": info, "sft": warm_start,
    }  # fmt: skip


def _add_grid(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", type=Path, nargs="?", metavar="RECIPE", help="YAML file: docs/compare.md"
    )
    if parser.prog.endswith("compare"):
        parser.add_argument("--quick", action="store_true", help="the built-in recipe")
        parser.add_argument(
            "--seeds", type=_positive, metavar="N", help="the first N of the recipe's seeds alone"
        )
    parser.add_argument(
        "--jobs", type=_positive, metavar="N", help="cells at a time (default: one a core)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write (default: the recipe's)"
    )
    _add_settings(parser, tuple(name for name, _, _ in options() if name not in GRID))


def _add_settings(parser: argparse.ArgumentParser, chosen: tuple[str, ...] | None) -> None:
    """A flag per setting of Config, grouped as the tree is; ``chosen`` keeps only those."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for dotted, item, kind in options():
        if chosen is not None and dotted not in chosen:
            continue
        section = dotted.rpartition(".")[0]
        title = section or item.metadata["group"]
        if title not in groups:
            about = sections()[section].__doc__.splitlines()[0] if section else None
            groups[title] = parser.add_argument_group(title, about)
        several = typing.get_origin(kind) is tuple
        base = kind if isinstance(kind, type) and not several else typing.get_args(kind)[0]
        more = {"nargs": "+", "action": "extend"} if several else {}
        default = "" if item.default in (None, ()) else f" (default: {item.default})"
        # A text option says itself what it may be.
        plain = base is str and not item.metadata["choices"]
        must_be = "" if plain else f"; {describe(item, base)}"
        groups[title].add_argument(
            _flag(dotted), dest=dotted, default=argparse.SUPPRESS, metavar=base.__name__.upper(),
            help=f"{item.metadata['doc']}{must_be}{default}".replace("%", "%%"),
            **more,
        )  # fmt: skip


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"is {text!r}, must be an integer >= 0")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}, must be an integer >= 1")
    return int(text)


def _flag(dotted: str) -> str:
    return f"--{dotted.replace('_', '-')}"


def run_train(args: argparse.Namespace) -> None:
    flags = {k: v for k, v in vars(args).items() if k not in ("command", "config", "resume")}
    if args.resume is not None:
        settings = _resumed_settings(args, flags)
    else:
        settings = (load_yaml(args.config) if args.config else {}) | flags
    config = build_config(settings)
    if args.resume is not None and is_complete(args.resume, config):
        print(f"{args.resume}: finished after {config.steps} steps; --steps N would go on to N")
        return
    from dfpo.run.train import train

    train(config, args.resume)


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
            settings |= {"data": None, "eval_data": None, "reward": ()}
    config = build_config(settings | {"model": str(target)} | flags)
    from dfpo.run.eval_command import evaluate_target

    print(evaluate_target(target, config, args.show, args.json))


def run_critic(args: argparse.Namespace) -> None:
    from dfpo.study.probe.command import describe, probe_runs, to_json

    found = probe_runs(args.runs, args.answers, args.plays, args.plot)
    print(to_json(found) if args.json else describe(found))


def run_compare(args: argparse.Namespace) -> None:
    if (args.recipe is None) != args.quick:
        raise ConfigError("recipe: must be given, or --quick instead of it")
    from dfpo.study.compare import compare

    compare(args.recipe, args.output, args.seeds, args.jobs, _grid_flags(args))


def run_tune(args: argparse.Namespace) -> None:
    if args.recipe is None:
        raise ConfigError("recipe: must be given")
    from dfpo.study.tune import tune

    tune(args.recipe, args.output, args.jobs, _grid_flags(args))


def _grid_flags(args: argparse.Namespace) -> dict[str, Any]:
    own = ("command", "recipe", "quick", "jobs", "output", "seeds")
    return {k: v for k, v in vars(args).items() if k not in own}


def run_info(args: argparse.Namespace) -> None:
    from dfpo.run.info import collect_info, describe_info

    info = collect_info()
    print(json.dumps(info, indent=2) if args.json else describe_info(info))


def run_sft(args: argparse.Namespace) -> None:
    from dfpo.study import starting_policy

    starting_policy.main(args)


COMMANDS = {
    "train": run_train, "eval": run_eval, "critic": run_critic, "compare": run_compare,
    "tune": run_tune, "info": run_info, "sft": run_sft,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; wrong input is one line on stderr and exit status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Flags may be written with underscores, as the YAML keys are.
    words = [_dashed(word) if word.startswith("--") else word for word in words]
    parser, commands = build_parsers(words[0] if words else "")
    args, unknown = parser.parse_known_args(words)
    if unknown:
        commands[args.command].refuse(unknown[0])
    return exit_status(f"dfpo {args.command}", lambda: COMMANDS[args.command](args))


def _dashed(word: str) -> str:
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value


if __name__ == "__main__":
    sys.exit(main())
