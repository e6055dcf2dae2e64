"""Why a run ends before its last step: an error it cannot go on from, Ctrl-C, SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from dfpo.config import ConfigError
from dfpo.rollout.processes import Processes

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: its terminal is gone


class RunError(RuntimeError):
    """Why a run ended early, in one line; its last checkpoint is there."""


class Stopped(BaseException):
    """The run was told to stop. Not an Exception, which a reward function might swallow."""

    def __init__(self, signum: int, run: Path | None, proceed: str | None = None) -> None:
        """``proceed`` says how to go on where that is not by resuming ``run``."""
        made = run is not None and run.exists()
        what = proceed or (how_to_resume(run) if made else "nothing was written")
        super().__init__(f"stopped by {signal.Signals(signum).name}; {what}")
        self.signum = signum


def how_to_resume(run: Path) -> str:
    return f"continue with: dfpo train --resume {run}"


def exit_status(command: str, work: Callable[[], None]) -> int:
    """Does the work of a command. What ends it early is one line on stderr and a status: 2 for
    wrong input, 1 for a run that cannot go on, 128 and the signal's number for one."""
    try:
        work()
    except BrokenPipeError:
        # Who reads, `| head` say, has enough. What is left must not be written when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except ConfigError as error:
        _say(f"{command}: error: {error}")
        return 2
    except RunError as error:
        _say(f"{command}: {error}")
        return 1
    except Stopped as stopped:
        _say(f"{command}: {stopped}")
        return 128 + stopped.signum

    return 0


def _say(line: str) -> None:
    """Once, though every process comes to the same end."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


class StopRequest:
    """Raises Stopped at once outside a step; inside one the first signal waits for the step's end
    in ``signum``, the second does not."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.run: Path | None = None
        self.in_step = False

    @contextmanager
    def listen(self) -> Iterator[StopRequest]:
        # Python delivers signals to the main thread alone.
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}

        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def step(self) -> Iterator[None]:
        self.in_step = True
        try:
            yield
        finally:
            self.in_step = False

    def agree(self) -> None:
        """A signal that one process got is everybody's: all stop after the same step."""
        processes = Processes.here()
        if processes.count > 1:
            got = torch.tensor([self.signum or 0])
            self.signum = int(processes.most(got)) or None

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if not self.in_step or self.signum is not None:
            raise Stopped(signum, self.run)
        self.signum = signum
        if Processes.here().leads:
            print("\nfinishing this step; once more to stop at once", file=sys.stderr)
