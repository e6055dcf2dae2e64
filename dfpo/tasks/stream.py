"""Rows of a data set that is read as it goes, never whole.

Row i of a stream is a function of (data, seed, i): epochs follow each other, each in an order of
its own, shuffled among the rows of a buffer. So a step is its position: a resumed run reads past
what it has seen and goes on with the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any

from dfpo.config import ConfigError
from dfpo.config.types import Row

Check = Callable[[str, Any], None]  # (place, row), raises ConfigError


class RowStream:
    """A ``datasets.IterableDataset``, by position."""

    def __init__(self, name: str, data: Any, check: Check, *, seed: int, buffer: int) -> None:
        self.name, self.check = name, check
        self.data = data.shuffle(seed=seed, buffer_size=buffer) if buffer > 1 else data
        self._kept: tuple[int, list[Row]] = (0, [])  # the rows that were read last, from where
        self._next: Iterator[Row] = iter(())
        self._position = -1  # of the next row of ``_next``

    def rows(self, start: int, stop: int) -> list[Row]:
        """Rows ``start`` to ``stop``; a column that one of them lacks is None there. Those that
        follow the last ones are read on, earlier ones from the beginning."""
        first, kept = self._kept
        if not first <= start <= stop <= first + len(kept):
            if start != self._position:
                self._next = islice(self._epochs(), start, None)
            first, kept = start, list(islice(self._next, stop - start))
            self._kept, self._position = (first, kept), stop

        return kept[start - first : stop - first]

    def step(self, number: int, size: int) -> list[Row]:
        """The rows of a training step."""
        return alike(self.rows(number * size, (number + 1) * size))

    def head(self, size: int) -> list[Row]:
        """The first rows of an epoch, fewer where there are fewer."""
        return alike(list(islice(self._epoch(0), size)))

    def _epochs(self) -> Iterator[Row]:
        for epoch in count():
            yield from self._epoch(epoch)

    def _epoch(self, epoch: int) -> Iterator[Row]:
        self.data.set_epoch(epoch)
        number = 0
        try:
            for number, row in enumerate(self.data, start=1):
                self.check(f"{self.name}, row {number} of epoch {epoch}", row)
                yield dict(row)
        except ConfigError:
            raise
        # A network that is gone, a file that is broken: in the library's words.
        except Exception as error:  # noqa: BLE001
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ConfigError(f"{self.name} ends after row {number}: {reason}") from None

        if not number:
            raise ConfigError(f"{self.name} holds no rows, must hold at least one")


def alike(rows: list[Row]) -> list[Row]:
    """The rows with the columns of all of them."""
    keys = dict.fromkeys(key for row in rows for key in row)
    return [{key: row.get(key) for key in keys} for row in rows]
