"""The command line: ``dfpo train``, ``dfpo sft``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfpo.config import (
    Config,
    ConfigError,
    build_config,
    describe,
    load_yaml,
    options,
    sections,
    suggestion,
)

TRAIN_EPILOG = """\
examples:
  dfpo train                                   train DFPO on the shipped three-domain suite
  dfpo train --noise flip=0.3 --seed 1         the same with three in ten rewards flipped
  dfpo train --algorithm ppo --noise flip=0.3  the scalar-critic baseline on the same draws
  dfpo train --config runs/NAME/config.yaml    the same run again

A YAML file holds the same settings, nested (critic: {width: 64}) or dotted (critic.width: 64);
flags win over the file, the file over the algorithm's preset.
"""


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
    warm_start = commands.add_parser(
        "sft", help="make the starting policy that ships with dfpo",
        description="Fine-tune the small starting policy on a sloppy demonstrator.",
        formatter_class=formatter, allow_abbrev=False,
    )  # fmt: skip
    if command == "train":
        _add_settings(train)
    elif command == "sft":
        from dfpo import sft

        sft.add_arguments(warm_start)
    return parser, {"train": train, "sft": warm_start}


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag per setting of Config, grouped as the tree is."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    groups = {
        section: parser.add_argument_group(section or "run", cls.__doc__.splitlines()[0])
        for section, cls in sections().items()
    }
    for dotted, item, kind in options():
        section = dotted.partition(".")[0] if "." in dotted else ""
        base = kind if isinstance(kind, type) else str
        default = "" if item.default is None else f" (default: {item.default})"
        groups[section].add_argument(
            f"--{dotted.replace('_', '-')}", dest=dotted, default=argparse.SUPPRESS,
            metavar=base.__name__.upper(),
            help=f"{item.metadata['doc']}; {describe(item, base)}{default}".replace("%", "%%"),
        )  # fmt: skip


def run_train(args: argparse.Namespace) -> None:
    flags = {k: v for k, v in vars(args).items() if k not in ("command", "config")}
    settings = (load_yaml(args.config) if args.config else {}) | flags
    config: Config = build_config(settings)
    from dfpo.train import train

    train(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; wrong input is one line on stderr and exit status 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Flags may be written with underscores, as the YAML keys are.
    words = [_dashed(word) if word.startswith("--") else word for word in words]
    parser, commands = build_parsers(words[0] if words else "")
    args, unknown = parser.parse_known_args(words)
    if unknown:
        commands[args.command].refuse(unknown[0])
    try:
        if args.command == "train":
            run_train(args)
        else:
            from dfpo import sft

            sft.main(args)
    except ConfigError as error:
        print(f"dfpo {args.command}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _dashed(word: str) -> str:
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value
