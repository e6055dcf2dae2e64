"""The command line: ``dfpo train`` and its like."""

from __future__ import annotations

import argparse
import importlib.util
import io
import sys
from collections.abc import Sequence

import dfpo

if said := dfpo.missing_trainer():
    sys.exit(said)

from dfpo.config import ConfigError
from dfpo.config.flags import HELP_ALL, Command, HelpFormatter, Parser, dashed
from dfpo.run import commands as run_commands
from dfpo.run.stop import exit_status
from dfpo.study import commands as study_commands


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


def add_completion(parser: Parser, everything: bool) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="whose completion")


def run_completion(args: argparse.Namespace) -> None:
    if importlib.util.find_spec("shtab") is None:
        raise ConfigError("completion: needs shtab, which is not installed: pip install shtab")
    import shtab

    print(shtab.complete(build_parsers("completion")[0], shell=args.shell))


COMMANDS = {
    **run_commands.COMMANDS,
    **study_commands.COMMANDS,
    "completion": Command(
        help="print a completion script for your shell",
        description='Completion of commands and flags; for bash: eval "$(dfpo completion bash)"',
        add_arguments=add_completion,
        run=run_completion,
    ),
}


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
