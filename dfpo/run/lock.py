"""One writer a directory: a lock that dies with its process.

By flock, which the kernel lets go of when the process ends, however it ends. Where a file system
has no flock (some of NFS), by a file that only one process can make; it names process, machine and
boot, and is left aside once that process is gone, or, of another machine, once it has not been
touched for STALE seconds.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

NAME, HELD = ".lock", ".lock.held"
BEAT, STALE = 30.0, 300.0
LOOKS, LOOK = 5, 0.05  # what only looks at a lock (``is_held``) holds it for a moment
UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


class AtWork(Exception):
    """Another process holds the lock; says which."""


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Holds the lock of ``folder`` inside. Raises AtWork, and OSError where nothing can be
    written."""
    with (folder / NAME).open("a+", encoding="utf-8") as file:
        try:
            _lock(file)
        except BlockingIOError:
            file.seek(0)
            raise AtWork(file.read().strip() or "another process") from None
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
            with _held(folder / HELD):
                yield
            return
        file.seek(0)
        file.truncate()
        file.write(_name())
        file.flush()
        yield


def is_held(folder: Path) -> bool:
    """Whether a process holds the lock of ``folder``. Writes nothing."""
    if (folder / HELD).exists() and not _is_stale(folder / HELD):
        return True
    try:
        with (folder / NAME).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _lock(file: TextIO) -> None:
    """Raises BlockingIOError where another process holds it for longer than a look takes."""
    for look in range(LOOKS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if look == LOOKS - 1:
                raise
            time.sleep(LOOK)


def _name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextmanager
def _held(path: Path) -> Iterator[None]:
    owner = {"who": _name(), "host": socket.gethostname(), "boot": _boot(), "pid": os.getpid()}
    owner["started"] = _started(os.getpid())
    for _ in range(2):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            break
        except FileExistsError:
            if not _is_stale(path):
                raise AtWork(_who(path)) from None
            path.unlink(missing_ok=True)
    else:
        raise AtWork(_who(path))

    with os.fdopen(descriptor, "w") as file:
        json.dump(owner, file)

    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, done), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        path.unlink(missing_ok=True)


def _beat(path: Path, done: threading.Event) -> None:
    """Touches the file, so that other machines see that its process is alive."""
    while not done.wait(BEAT):
        try:
            os.utime(path)
        except OSError:
            return


def _is_stale(path: Path) -> bool:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        age = time.time() - path.stat().st_mtime
    except (OSError, ValueError):
        # Gone by now, or just made: its maker has not written yet.
        return not path.exists()

    if owner["host"] != socket.gethostname():
        return age > STALE
    return owner["boot"] != _boot() or _started(owner["pid"]) != owner["started"]


def _who(path: Path) -> str:
    try:
        return json.loads(path.read_text(encoding="utf-8"))["who"]
    except (OSError, ValueError, KeyError):
        return "another process"


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _started(pid: int) -> str:
    """When a process began, in the kernel's ticks; "" where it is gone."""
    try:
        # Behind the name, which may hold anything, the 20th field.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
