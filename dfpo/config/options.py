"""A documented field of the configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import field
from typing import Any

from dfpo.config.tables import Choice


def option(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Collection[str] | None = None,
    table: Mapping[str, Choice] | None = None,
    group: str = "run",
    common: bool = False,
) -> Any:
    """A documented field; ``low`` and ``high`` are inclusive bounds, ``table`` says what each of
    its choices is, ``group`` is its place in ``--help`` where the field is at the top of the tree.
    What is ``common`` stands in ``--help``, everything in ``--help-all``."""
    if table is not None:
        choices = table  # as it is when a value is read, so that a row added to it counts
    metadata = {
        "doc": doc, "low": low, "high": high, "choices": choices, "table": table, "group": group,
        "common": common,
    }  # fmt: skip
    return field(default=default, metadata=metadata)
