"""The command line: ``dfpo train``, ``dfpo sft``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dfpo import sft
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
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            flag = message.removeprefix(prefix).split()[0].split("=")[0]
            known = {name: None for action in self._actions for name in action.option_strings}
            message = f"{flag}: is no option{suggestion(flag, known)}"
        self.exit(2, f"{self.prog}: error: {message}\n")


def build_parser() -> Parser:
    parser = Parser(
        prog="dfpo", description="Post-train language models on rewards you cannot trust."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    formatter = argparse.RawDescriptionHelpFormatter
    train = commands.add_parser(
        "train", help="train a policy with a value-flow critic, or a baseline",
        description="Train a policy by PPO with a value-flow critic (DFPO), or a baseline.",
        epilog=TRAIN_EPILOG, formatter_class=formatter, allow_abbrev=False,
    )  # fmt: skip
    _add_settings(train)
    warm_start = commands.add_parser(
        "sft", help="make the starting policy that ships with dfpo",
        description="Fine-tune the small starting policy on a sloppy demonstrator.",
        formatter_class=formatter, allow_abbrev=False,
    )  # fmt: skip
    sft.add_arguments(warm_start)
    return parser


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
    args = build_parser().parse_args(words)
    try:
        if args.command == "train":
            run_train(args)
        else:
            sft.main(args)
    except ConfigError as error:
        print(f"dfpo {args.command}: error: {error}", file=sys.stderr)
        return 2
    return 0


def _dashed(word: str) -> str:
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value
