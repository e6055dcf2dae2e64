"""Progress: a bar on a terminal, a line now and then everywhere else. Neither has colours."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from tqdm import tqdm

from dfpo.config import Config
from dfpo.rollout.processes import Processes

# Lines where there is no terminal: one every so many per cent, and not more often than so many
# seconds.
SHARE, SECONDS = 0.05, 10.0


class Lines(tqdm):
    """tqdm whose bar is a plain line every few per cent: for log files, CI and pipes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._told, self._when = 0, time.monotonic()
        # Never by itself; a name that no terminal shows needs no control characters.
        super().__init__(*arguments, **options, mininterval=1e9, maxinterval=1e9)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        pass

    def clear(self, nolock: bool = False) -> None:
        pass

    def update(self, n: float | None = 1) -> None:
        super().update(n)
        self.tell()

    def __iter__(self) -> Any:
        for item in self.iterable:
            yield item
            self.n += 1
            self.tell()
        self.close()

    def tell(self) -> None:
        total, now = self.total or 0, time.monotonic()
        if not total or self.disable:
            return
        due = self.n - self._told >= SHARE * total and now - self._when >= SECONDS
        # A bar that goes when it ends, as one of an evaluation does, has no last word.
        if not due and (self.n < total or not self.leave):
            return
        self._told, self._when = self.n, now
        words = f", {self.postfix}" if self.postfix else ""
        units = f"{self.unit}es" if self.unit.endswith("ch") else f"{self.unit}s"
        self.fp.write(f"{self.desc}: {self.n} of {total} {units}{words}\n")
        self.fp.flush()

    def close(self) -> None:
        self.disable = True


def bar(*arguments: Any, **options: Any) -> tqdm:
    """``tqdm(...)``, on a terminal that can draw over a line; ``Lines`` elsewhere."""
    draws = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    kind = tqdm if draws else Lines
    return kind(*arguments, **options, file=sys.stderr)


def speaks(config: Config) -> bool:
    """Whether this process says how the run goes: the first one, unless it is to be quiet."""
    return Processes.here().leads and not config.quiet
