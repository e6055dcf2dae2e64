"""Verifiers of final answers: mathematics, multiple choice, a few words.

An answer is what stands in the last `\\boxed{}` after the last `</think>`. Mathematics is compared
by math-verify (https://github.com/huggingface/Math-Verify, `pip install 'dfpo[math]'`) in a process
of its own, which is killed where an expression takes too long: its own alarm cannot stop an
arbitrary-precision power, and it is refused outside the main thread.
"""

from __future__ import annotations

import json
import re
import select
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

SECONDS = 5.0  # for one answer
STARTING = 60.0  # until the process has imported its libraries
SCIENTIFIC = re.compile(r"(-?[\d.]+)[eE]([+-]?\d+)")
MARKUP = re.compile(r"\\(?:text|math)[a-z]*|[{}$*]")
# A letter stands alone or is set off: "A gas" and "I think" are words; "A, B" and "(A) or (B)" two.
SET_OFF = r"(?!\)?\s*(?:,\s*(?:and|or)?|and|or)\s*\(?[A-J]\b)(?:[ \t]*$|\)|[.:,](?=\s|$))"
LETTER = re.compile(r"\(?([A-Ja-j])" + SET_OFF)
SPOKEN = re.compile(r"[Aa]nswer(?:\s+is)?\s*:?\s*\(?([A-J])" + SET_OFF, re.MULTILINE)


def boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{}` after the last `</think>`, None where there is none or
    it is never closed."""
    _, found, rest = text.rpartition("</think>")[2].rpartition("\\boxed{")
    if not found:
        return None
    depth = 1
    for place, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:place].strip()
    return None


def letter(text: str) -> str | None:
    """The letter of a choice: in the box, else the last that is called the answer."""
    found = boxed(text)
    if found is not None:
        match = LETTER.match(MARKUP.sub("", found).strip())
        return match[1].upper() if match else None
    spoken = SPOKEN.findall(MARKUP.sub("", text.rpartition("</think>")[2]))
    return spoken[-1] if spoken else None


def words(text: str) -> str | None:
    """The words in the box in lower case, without articles and punctuation."""
    found = boxed(text)
    return None if found is None else _normalise(found)


def _normalise(text: str) -> str | None:
    text = re.sub(r"\\text\{([^}]*)\}", r"\1", text).lower()
    kept = re.sub(r"[^\w\s.+-]", " ", text).split()
    return " ".join(w.strip(".") for w in kept if w not in ("a", "an", "the")) or None


def compact(text: str) -> str | None:
    """The box without spaces: equal texts are equal answers, unequal ones may be too."""
    found = boxed(text)
    return None if found is None else "".join(found.split()) or None


def same_choice(text: str, answer: str) -> float:
    return float(letter(text) == answer.strip())


def same_words(text: str, answer: str) -> float:
    found = words(text)
    return float(found is not None and found == _normalise(answer))


def same_mathematics(text: str, answer: str) -> float | None:
    """1.0 or 0.0, or None where the comparison failed or took too long, or `answer` is nothing that
    math-verify reads. Raises ModuleNotFoundError where math-verify is not installed."""
    found = boxed(text)
    if found is None:
        return 0.0
    return _PROCESS.ask(found, answer)


@dataclass(frozen=True)
class Kind:
    """How answers of one kind are compared."""

    verify: Callable[[str, str], float | None]  # (completion, answer)
    extract: Callable[[str], str | None]


KINDS = {
    "math": Kind(same_mathematics, compact),
    "choice": Kind(same_choice, letter),
    "text": Kind(same_words, words),
}


class _MathVerify:
    """A process that compares pairs of expressions, one JSON line each way."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def ask(self, found: str, answer: str) -> float | None:
        if self.process is None:
            self._start()
        try:
            self.process.stdin.write(json.dumps([found, answer]) + "\n")
            self.process.stdin.flush()
        except OSError:
            return self._stop()
        return self._reply(SECONDS)

    def _start(self) -> None:
        if find_spec("math_verify") is None:
            raise ModuleNotFoundError("math-verify is not installed; pip install 'dfpo[math]'")
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._reply(STARTING)

    def _reply(self, seconds: float) -> Any:
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else ""
        return json.loads(line) if line else self._stop()

    def _stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process = None


_PROCESS = _MathVerify()


def _serve() -> None:
    from math_verify import parse, verify

    def read(text: str) -> list:
        # 4.5e33 would be read as 4.5 times Euler's number times 33.
        text = SCIENTIFIC.sub(r"\1 \\cdot 10^{\2}", text)
        return parse(f"\\boxed{{{text}}}", parsing_timeout=None)

    print(json.dumps(True), flush=True)
    for line in sys.stdin:
        found, answer = json.loads(line)
        gold = read(answer.strip().strip("$"))
        same = float(verify(gold, read(found), timeout_seconds=None)) if gold else None
        print(json.dumps(same), flush=True)


if __name__ == "__main__":
    _serve()
