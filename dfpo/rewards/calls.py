"""Calls of functions that others wrote: whatever they do, the run is as it was, and it is told.

A reward file is trusted to run, not to be right. What it raises, ``sys.exit`` and ``os._exit``
included, is a failed batch in its own words; a time limit ends what never returns; the working
directory, standard output and arguments are the run's again afterwards; a child that it forked and
that comes back here ends. A function that aborts the interpreter itself cannot be survived within
one process.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfpo.config import ConfigError
from dfpo.config.untrusted import TimeLimit, time_limit

RewardFunction = Callable[..., Any]
# Keywords of TRL 1.16 that a function gets where its signature takes them.
TRAINER_KEYWORDS = ("trainer_state", "log_metric", "log_extra")


GRACE = 1.0  # seconds beyond the limit in which functions that are awaited may end by themselves


class RewardError(ValueError):
    """What a reward function did wrong, in one line."""


class _Exit(BaseException):
    """In place of the end of the process that a function asked for."""


# Whatever a user's function raises is reported in its own words. Ctrl-C is a signal of ours, so an
# interrupt that comes from a function is its own.
FAILURES = (Exception, SystemExit, KeyboardInterrupt, GeneratorExit, _Exit)


def call_all(
    functions: Sequence[RewardFunction],
    keywords: dict[str, list],
    extra: dict[str, Any],
    seconds: float,
) -> list[list[Any] | RewardError]:
    """What each function returns for a batch, as a list with an item per answer, or what it did
    wrong. Functions that are awaited run at once. ``seconds`` is the limit of each, 0 for none."""
    count = len(next(iter(keywords.values()), []))
    results: list[Any] = [_attempt(f, keywords, extra, seconds) for f in functions]
    waiting = [i for i, result in enumerate(results) if inspect.isawaitable(result)]
    if waiting:
        awaited = _await_all([results[i] for i in waiting], seconds)
        for i, result in zip(waiting, awaited, strict=True):
            results[i] = result

    return [
        result if isinstance(result, RewardError) else _listed(result, count) for result in results
    ]


def _attempt(
    function: RewardFunction, keywords: dict[str, list], extra: dict[str, Any], seconds: float
) -> Any:
    # Copies, since a function may sort, extend or change what it is given.
    given = copy.deepcopy(keywords) | accepted(function, extra)
    try:
        with guarded(seconds):
            return function(**given)
    except TimeLimit:
        return _too_late(seconds)
    except FAILURES as error:
        return _failed(error)


def accepted(function: RewardFunction, extra: dict[str, Any]) -> dict[str, Any]:
    """Those keywords that the function names or takes as ``**columns``."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return extra
    return {name: value for name, value in extra.items() if name in parameters}


def _failed(error: BaseException) -> RewardError:
    return RewardError(raised(error))


def raised(error: BaseException) -> str:
    """What a function raised and where, in one line."""
    text = " ".join(f"{type(error).__name__.lstrip('_')}: {error}".split())
    return f"raised {text[:300]}{where(error)}"


def _too_late(seconds: float) -> RewardError:
    return RewardError(f"did not return within {seconds:g} seconds; --reward.timeout gives it more")


def _listed(scores: Any, count: int) -> list[Any] | RewardError:
    if hasattr(scores, "tolist"):  # tensors and arrays
        scores = scores.tolist()
    if not isinstance(scores, (list, tuple)):
        return RewardError(f"returned {type(scores).__name__}, must return a list of numbers")

    if len(scores) != count:
        return RewardError(
            f"returned {len(scores)} scores for {count} answers, must return one each"
        )

    return list(scores)


def _await_all(waiting: list[Awaitable[Any]], seconds: float) -> list[Any]:
    """The results, or errors, of what runs at once in a loop of its own: a notebook has one at
    work in this thread already."""

    async def one(work: Awaitable[Any]) -> Any:
        try:
            return await asyncio.wait_for(work, seconds or None)
        except TimeoutError:
            return _too_late(seconds)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001
            return _failed(error)

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*map(one, waiting))

    results: list[Any] = []
    # A function that blocks its loop is never told that its time is up: the run goes on without it.
    work = threading.Thread(target=lambda: results.extend(asyncio.run(all_of_them())), daemon=True)
    work.start()
    work.join(seconds + GRACE if seconds else None)
    if work.is_alive():
        return [_too_late(seconds)] * len(waiting)
    return results or [RewardError("ended its event loop")] * len(waiting)


@contextmanager
def guarded(seconds: float) -> Iterator[None]:
    """The process' state is as before afterwards, and the work inside ends in time."""
    process, folder, exit_now = os.getpid(), os.getcwd(), os._exit
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_Unclosable, streams)
    os._exit = _refuse

    try:
        with time_limit(seconds):
            yield
    finally:
        os._exit = exit_now
        if os.getpid() != process:  # a child that the function made and did not end
            exit_now(0)
        sys.stdout, sys.stderr = streams
        os.chdir(folder)


def _refuse(status: int = 0) -> None:
    raise _Exit(f"os._exit({status})")


class _Unclosable:
    """A stream that a function may write to and not close."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        self._stream.flush()


def import_file(path: Path, setting: str = "reward") -> Any:
    """The module of a file, which may import its neighbours. Raises ConfigError, which names the
    ``setting`` that names the file."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(f"dfpo_{setting}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles of the module look it up there
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)

    try:
        with guarded(0):
            spec.loader.exec_module(module)
    # The file is the user's: whatever it raises is told in one line.
    except (Exception, SystemExit, KeyboardInterrupt, _Exit) as error:  # noqa: BLE001
        text = " ".join(f"{type(error).__name__.lstrip('_')}: {error}".split())
        raise ConfigError(f"{setting}: {path} cannot be imported: {text}{where(error)}") from error

    return module


def where(error: BaseException) -> str:
    """File and line of the deepest frame of the user's own code."""
    trace = error.__traceback__
    place = ""
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.parent != Path(__file__).parent and "importlib" not in str(file):
            place = f" ({file.name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place
