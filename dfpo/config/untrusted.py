"""Bounds on what strangers wrote: model directories, tokenizers, chat templates, functions.

Python code that loops is stopped by a time limit, and what asks for too much memory by a limit on
the address space. Compiled code knows neither: it is tried first, in a child process.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import select
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from dfpo.config.errors import ConfigError

GIB = 2**30
LAYERS = 2000  # that a model may have; each takes time to build, whatever its weights are
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")


class TimeLimit(BaseException):
    """Raised inside what runs too long; no Exception, which it might catch."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeLimit inside after ``seconds``, 0 for never; in the main thread alone, where
    signals go."""
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(signum: int, frame: FrameType | None) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def memory_limit(more: int) -> Iterator[None]:
    """Inside, Python raises MemoryError where this process would take ``more`` bytes more than it
    has. No limit where the system does not say how much that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        yield
        return

    limit = pages * resource.getpagesize() + more
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def try_apart(work: Callable[[], Any], seconds: float, memory: int) -> str | None:
    """Does ``work`` in a child process first: None where it ends, by itself or by an exception;
    the words of a ConfigError; "" where it took more than these bounds or ended its process."""
    heard, said = os.pipe()
    process = os.fork()
    if process == 0:
        _do_and_end(work, said, seconds, memory)
    os.close(said)

    words = b""
    # The child's own alarm ends Python code. Compiled code, which hears none, is killed.
    while select.select([heard], [], [], seconds + 1)[0]:
        some = os.read(heard, 65536)
        words += some
        if not some:
            break
    else:
        os.kill(process, signal.SIGKILL)
    os.close(heard)
    ended = os.waitpid(process, 0)[1] == 0

    return None if ended and not words else words.decode(errors="replace")


def _do_and_end(work: Callable[[], Any], said: int, seconds: float, memory: int) -> None:
    """Never returns: nothing of the parent's may run in its child, not even its exits."""
    status = 1
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.disable()
        # What a library says as it falls is not for the user.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with time_limit(seconds), memory_limit(memory):
            work()
        status = 0
    except ConfigError as error:
        os.write(said, str(error).encode(errors="replace")[:4000])
        status = 0
    except Exception:  # noqa: BLE001
        status = 0
    finally:
        os._exit(status)


@contextmanager
def without_panic_lines() -> Iterator[None]:
    """What a library in Rust writes to standard error as it gives up is kept back; all else that
    is written there inside comes afterwards."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = is_panic(error)
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            text = file.read()
            if text and not panicked:
                os.write(2, text)


def read_pretrained(loader: Any, setting: str, what: str, path: Path, **source: Any) -> Any:
    """``loader.from_pretrained`` without code of the directory's and within its size. Raises
    ConfigError, which says that ``path`` of ``setting`` holds not ``what``."""
    check_layers(setting, path)
    files = [path] if path.is_file() else [file for file in path.glob("*") if file.is_file()]
    # Weights of 4 bits become 32, and are there twice while they are read.
    room = 16 * sum(file.stat().st_size for file in files) + 4 * GIB
    try:
        with memory_limit(room), without_panic_lines():
            return loader.from_pretrained(**source, local_files_only=True, trust_remote_code=False)
    # transformers and its file formats raise many kinds of error for a directory that is no model.
    except Exception as error:  # noqa: BLE001
        raise ConfigError(f"{setting}: {path} holds not {what}: {_reason(error)}") from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise ConfigError(f"{setting}: {path} holds not {what}: {_reason(error)}") from None


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust has given up: no Exception, though it is one."""
    return type(error).__name__ == "PanicException"


def _reason(error: BaseException) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    if "weights_only" in reason:
        # torch's own words advise to run the code.
        return "its pickled weights ask for code to be run, must be safetensors"
    if "trust_remote_code" in reason:
        return "it wants code of its own to be run, must be a class of transformers"
    return reason[:300]


def check_layers(setting: str, path: Path) -> None:
    """Each layer is built before its weights are missed."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    except (OSError, ValueError, RecursionError, AttributeError):
        return  # transformers says it better

    for part in parts:
        for key in LAYER_COUNTS:
            count = part.get(key)
            if isinstance(count, int) and count > LAYERS:
                raise ConfigError(
                    f"{setting}: {path}/config.json says {key} = {count}, must be at most {LAYERS}"
                )
