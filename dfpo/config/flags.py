"""A command, and settings as flags: ``--help`` for what people set, ``--help-all`` for all."""

from __future__ import annotations

import argparse
import dataclasses
import re
import textwrap
import typing
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from dfpo.config.algorithms import ALGORITHMS
from dfpo.config.build import RENAMED, SHORT, must_be, options, sections, suggestion
from dfpo.config.noise import MIXTURE_DOC, NOISES, WORDS

HELP_ALL = "--help-all"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Each line of a help text begins on a line of its own: a choice is one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=31)

    def _split_lines(self, text: str, width: int) -> list[str]:
        lines = []
        for line in text.split("\n"):
            indent = " " * (4 if line.startswith("  ") else 0)
            lines += textwrap.wrap(line, width, subsequent_indent=indent)
        return lines


class Parser(argparse.ArgumentParser):
    """One line on a wrong flag, with the nearest right one, and exit status 2."""

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def refuse(self, word: str) -> Any:
        flag = word.partition("=")[0]
        if new := RENAMED.get(flag.removeprefix("--").replace("-", "_")):
            self.error(f"{flag}: is called {flag_of(new)} now")
        known = {name: None for action in self._actions for name in action.option_strings}
        self.error(f"{flag}: is no option{suggestion(flag, known)}")


@dataclass(frozen=True)
class Command:
    """One command: its words in ``--help``, its arguments, what it does."""

    help: str
    description: str
    add_arguments: Callable[[Parser, bool], None]
    run: Callable[[argparse.Namespace], None]
    usage: str | None = None
    epilog: str | None = None


def add_settings(
    parser: argparse.ArgumentParser,
    *,
    chosen: Collection[str] | None = None,
    everything: bool = False,
) -> None:
    """A flag per setting, grouped as the tree is; ``chosen`` keeps only those. Help is shown for
    the common ones, or for everything."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for dotted, item, kind in options():
        if chosen is not None and dotted not in chosen:
            continue
        section = dotted.rpartition(".")[0]
        title = section or item.metadata["group"]
        if title not in groups:
            about = sections()[section].__doc__.splitlines()[0] if section and everything else None
            groups[title] = parser.add_argument_group(title, about)

        several = typing.get_origin(kind) is tuple
        base = kind if isinstance(kind, type) and not several else typing.get_args(kind)[0]
        more = {"nargs": "+", "action": "extend"} if several else {}
        shown = everything or item.metadata.get("common", False)
        help_text = describe_setting(item, base, everything).replace("%", "%%")
        groups[title].add_argument(
            *flags_of(dotted), dest=dotted, default=argparse.SUPPRESS,
            metavar=base.__name__.upper(), help=help_text if shown else argparse.SUPPRESS, **more,
        )  # fmt: skip

    parser.add_argument(
        HELP_ALL, action="store_true", default=argparse.SUPPRESS,
        help="every setting, and what each may be",
    )  # fmt: skip


def describe_setting(item: dataclasses.Field, base: type, everything: bool) -> str:
    """What a setting is and its default; with ``everything`` also what it may be, and each choice
    on a line of its own."""
    text = item.metadata["doc"]
    default = "" if item.default in (None, ()) else f" (default: {item.default})"
    if not everything:
        return re.split("[;:] ", text)[0] + default

    choices = choice_lines(item)
    # A text option says itself what it may be, and so do choices that are listed.
    if not choices and (base is not str or item.metadata["choices"]):
        text += f"; {must_be(item, base)}"
    return "\n".join([text + default, *choices])


def choice_lines(item: dataclasses.Field) -> list[str]:
    """A line for each row of the setting's table."""
    if item.name == "noise":
        lines = [f"  {name}=X: {row.doc}; X is {row.must_be}" for name, row in NOISES.items()]
        return [*lines, *(f"  {word}=X: {doc}" for word, doc in WORDS.items()), f"  {MIXTURE_DOC}"]
    if item.name == "algorithm":
        return [f"  {name}: {row.summary}" for name, row in ALGORITHMS.items()]
    table = item.metadata.get("table") or {}
    return [f"  {name}: {row.doc}" for name, row in table.items()]


def flags_of(dotted: str) -> list[str]:
    """The flags of a setting, the one that people type first."""
    short = [flag_of(word) for word, name in SHORT.items() if name == dotted]
    return [*short, flag_of(dotted)]


def flag_of(dotted: str) -> str:
    return f"--{dotted.replace('_', '-')}"


def dashed(word: str) -> str:
    """Flags may be written with underscores, as the YAML keys are."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value


def count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"is {text!r}, must be an integer >= 0")
    return int(text)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"is {text!r}, must be an integer >= 1")
    return int(text)
