"""What a row of a table of choices is: a name's one line of help, its code, the settings it reads.

Each choice stands in one table: critics, policy losses and advantages in ``choices.py``, kinds of
noise in ``noise.py``. A row names its code as "module:name", which is imported when it is used, so
that the tables stand at the bottom of the tree and ``--help`` loads no model.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Choice:
    """One row."""

    doc: str  # one line of --help
    target: str = ""  # "module:name"; empty where the reader of the setting knows it by name
    reads: tuple[str, ...] = ()  # dotted settings, or "section.*", that matter for this choice

    def load(self) -> Any:
        """The function or class that the row names."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)

    def does_read(self, dotted: str) -> bool:
        section = dotted.rpartition(".")[0]
        return dotted in self.reads or f"{section}.*" in self.reads


def readers(table: Mapping[str, Choice], dotted: str) -> list[str]:
    """The rows of a table that read a setting. None of them: the table does not govern it."""
    return [name for name, choice in table.items() if choice.does_read(dotted)]
