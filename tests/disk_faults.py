"""A command whose disk fails at one of its writes, in a fork of this process.

Every opening of a file for writing, new directory, renaming and removal below a folder counts. At
the one that is asked for, either it alone is refused, or from it on no file takes another byte, or
the folder has gone. What libraries in C++ and Rust write is not seen by Python's audit hook, but
meets the full disk too, and a limit on the size of all files.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dfpo.__main__ import main

WRITES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink")
KINDS = ("refused", "full", "vanished")


@dataclass(frozen=True)
class Outcome:
    status: int
    said: str  # on standard output and error
    writes: int


def command_with_fault(
    words: list[str], folder: Path, *, at: int = -1, kind: str = "refused", largest: int = -1
) -> Outcome:
    """``dfpo`` with a fault of a kind at write ``at``, from 0, -1 for none; no file grows beyond
    ``largest`` bytes."""
    heard, tell = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(heard)
        _work(words, folder, tell, at, kind, largest)
    os.close(tell)
    with os.fdopen(heard, errors="replace") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    said, _, writes = said.rpartition("writes: ")

    return Outcome(status, said, int(writes or -1))


def _work(words: list[str], folder: Path, tell: int, at: int, kind: str, largest: int) -> None:
    status, count = 70, 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in WRITES or not _is_write(event, arguments, folder):
            return
        count += 1
        if count == at + 1:
            _fail(kind, folder)

    try:
        os.dup2(tell, 1)
        os.dup2(tell, 2)
        sys.stdout = sys.stderr = os.fdopen(tell, "w", buffering=1)
        # tqdm's own lock is shared with forks.
        tqdm.set_lock(threading.RLock())
        if largest >= 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
        sys.addaudithook(watch)
        status = main(words)
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os.write(tell, f"writes: {count}".encode())
        os._exit(status)


def _is_write(event: str, arguments: tuple, folder: Path) -> bool:
    path = arguments[1] if event in ("os.rename", "os.link", "os.symlink") else arguments[0]
    if not isinstance(path, (str, bytes, os.PathLike)):
        return False
    if event == "open":
        flags = arguments[2]
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return False
    return str(Path(os.fsdecode(path)).absolute()).startswith(str(folder))


def _fail(kind: str, folder: Path) -> None:
    if kind == "refused":
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    if kind == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    else:
        shutil.rmtree(folder, ignore_errors=True)
