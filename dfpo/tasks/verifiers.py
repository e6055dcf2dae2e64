"""Verifiers of final answers: mathematics, multiple choice, a few words.

An answer is what stands in the last `\\boxed{}` after the last `</think>`. Mathematics is compared
by math-verify (https://github.com/huggingface/Math-Verify, `pip install 'dfpo[math]'`) in a process
of its own, which ends where an expression takes too long: math-verify's own alarm cannot stop an
arbitrary-precision power, and it is refused outside the main thread.

That process is a fork of one that has imported its libraries, so that the next one is there in
milliseconds. An answer costs at most SECONDS of CPU time, whatever else the machine does, and what
was compared before costs nothing: 64 hostile answers cost a minute, 64 equal ones a second.

Nothing is evaluated that could take long: powers of powers, exponents and factorials of many
digits, and answers longer than LONGEST are right where they are written as the truth is, else
wrong.
Two numbers that are exact must be equal; a decimal must be within TOLERANCE of an exact number, so
6.283185307 is right for 2 pi, and 6.28 is not.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

SECONDS = 0.9  # of CPU time, for one answer
PATIENCE = 60.0  # seconds until a process that says nothing is given up, as while it is paused
TOLERANCE = 1e-6  # of a decimal, relative
LONGEST = 2000  # letters of an answer
# Exponents and factorials that an answer has no business to ask for.
TOWER = re.compile(
    r"(?:\^|\*\*)\s*[{(]?\s*-?\d{5,}|(?:\^|\*\*)\s*[{(][^{}()]*(?:\^|\*\*)|\d{5,}\s*!|!\s*[)}]*\s*!"
    r"|[)}]\s*!|(?:\^|\*\*)\s*\S+\s*(?:\^|\*\*)"
)
# 1\,234, 1{,}234 and 1\ 234: what stands between thousands.
THOUSANDS = re.compile(r"(?<=\d)(?:\\[,;:! ]|\{,\}|,\\!|\u00a0|\u202f|\u2009)(?=\d{3}(?!\d))")
MINUS = str.maketrans(dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-"))
SCIENTIFIC = re.compile(r"(-?[\d.]+)[eE]([+-]?\d+)")
MARKUP = re.compile(r"\\(?:text|math)[a-z]*|[{}$*]")
# A letter stands alone or is set off: "A gas" and "I think" are words; "A, B" and "(A) or (B)" two.
SET_OFF = r"(?!\)?\s*(?:,\s*(?:and|or)?|and|or)\s*\(?[A-J]\b)(?:[ \t]*$|\)|[.:,](?=\s|$))"
LETTER = re.compile(r"\(?([A-Ja-j])" + SET_OFF)
NAMED = r"(?:[Aa]nswer|[Oo]ption|[Cc]hoice)"
# Spaces belong to one part each: two that share them try every split of a long run.
SPOKEN = re.compile(NAMED + r"(?:\s+is)?\s*(?::\s*)?\(?([A-J])" + SET_OFF, re.MULTILINE)
# A small letter is a word unless it ends its line: "the answer is a matter of taste".
SMALL = re.compile(NAMED + r"\s*(?:is\s*)?(?::\s*)?\(?([a-j])\)?\.?[ \t]*$", re.MULTILINE)
ALONE = re.compile(r"\(?([A-Ja-j])\)?[.:]?")


def boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{}` after the last `</think>`, None where there is none or
    it is never closed."""
    _, marker, rest = text.rpartition("</think>")[2].rpartition("\\boxed{")
    if not marker:
        return None
    depth = 1

    for place, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:place].strip()

    return None


def letter(text: str) -> str | None:
    """The letter of a choice: in the box, else the last that is called the answer, the option or
    the choice, else all that is said."""
    inside = boxed(text)
    if inside is not None:
        match = LETTER.match(MARKUP.sub("", inside).strip())
        return match[1].upper() if match else None
    said = MARKUP.sub("", text.rpartition("</think>")[2]).strip()
    spoken = SPOKEN.findall(said) or SMALL.findall(said)
    if spoken:
        return spoken[-1].upper()
    alone = ALONE.fullmatch(said)

    return alone[1].upper() if alone else None


def words(text: str) -> str | None:
    """The words in the box in lower case, without articles and punctuation."""
    inside = boxed(text)
    return None if inside is None or len(inside) > LONGEST else _normalise(inside)


def _normalise(text: str) -> str | None:
    text = re.sub(r"\\text\{([^}]*)\}", r"\1", text).lower()
    kept = re.sub(r"[^\w\s.+-]", " ", text).split()
    return " ".join(w.strip(".") for w in kept if w not in ("a", "an", "the")) or None


def compact(text: str) -> str | None:
    """The box without spaces: equal texts are equal answers, unequal ones may be too."""
    inside = boxed(text)
    return None if inside is None else "".join(inside.split()) or None


def same_choice(text: str, answer: str) -> float:
    return float(letter(text) == answer.strip())


def same_words(text: str, answer: str) -> float:
    said = words(text)
    return float(said is not None and said == _normalise(answer))


def same_mathematics(text: str, answer: str) -> float | None:
    """1.0 or 0.0, or None where `answer` is nothing that math-verify reads. Raises
    ModuleNotFoundError where math-verify is not installed."""
    given = boxed(text)
    if given is None:
        return 0.0
    given, answer = plain(given), plain(answer.strip().strip("$"))
    if "".join(given.split()) == "".join(answer.split()):
        return 1.0
    if len(given) > LONGEST or TOWER.search(given) or TOWER.search(answer):
        return 0.0

    try:
        return _compare(given, answer)
    except BrokenPipeError:
        return 0.0


@lru_cache(maxsize=4096)
def _compare(given: str, answer: str) -> float | None:
    return _PROCESS.ask(given, answer)


def plain(text: str) -> str:
    """Digits and minus signs of any alphabet as ASCII's, thousands without what sets them apart, no
    full stop at the end."""
    text = "".join(
        str(unicodedata.decimal(c)) if not c.isascii() and c.isdecimal() else c for c in text
    )
    return THOUSANDS.sub("", text.translate(MINUS).strip()).removesuffix(".")


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

    def ask(self, given: str, answer: str) -> float | None:
        """1.0 or 0.0; None where the answer itself cannot be read. What takes too long is wrong.
        Raises BrokenPipeError where the process died or is paused; the next one is another."""
        if self.process is None:
            self._start()
        try:
            self.process.stdin.write(json.dumps([given, answer]) + "\n")
            self.process.stdin.flush()
            return self._reply()
        except BrokenPipeError:
            self._stop()
            raise

    def _start(self) -> None:
        if find_spec("math_verify") is None:
            raise ModuleNotFoundError("math-verify is not installed; pip install 'dfpo[math]'")
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(SECONDS)], start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._reply()

    def _reply(self) -> Any:
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            raise BrokenPipeError("the process that compares says nothing")
        return json.loads(line)

    def _stop(self) -> None:
        # With the fork that compares.
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process = None


_PROCESS = _MathVerify()


def _serve(seconds: float) -> None:
    """Compares what stands on each line of stdin, in a fork, which is replaced when it dies."""
    import math_verify

    # What is imported and built at the first use is so before the forks.
    math_verify.verify(
        math_verify.parse("\\boxed{1/2}", parsing_timeout=None), [0.5], timeout_seconds=None
    )
    print(json.dumps(True), flush=True)
    while True:
        fork = os.fork()
        if fork == 0:
            _compare_lines(seconds)
            os._exit(0)
        _, status = os.waitpid(fork, 0)
        if status == 0:
            return
        print(json.dumps(0.0), flush=True)


def _compare_lines(seconds: float) -> None:
    """Until stdin ends, or one takes more CPU time than ``seconds``."""
    from math_verify import parse, verify

    def read(text: str) -> list:
        # 4.5e33 would be read as 4.5 times Euler's number times 33.
        text = SCIENTIFIC.sub(r"\1 \\cdot 10^{\2}", text)
        return parse(f"\\boxed{{{text}}}", parsing_timeout=None)

    def same(gold: list, given: list) -> bool:
        return verify(gold, given, timeout_seconds=None) and _as_exact(gold[0], given[0])

    while line := sys.stdin.readline():
        written, answer = json.loads(line)
        verdict = None
        # Left to itself this signal ends the process, even within one long operation of C.
        signal.setitimer(signal.ITIMER_PROF, seconds)
        # Whatever a library raises for what a policy wrote, the answer is not shown to be right.
        try:
            gold = read(answer)
            verdict = 0.0 if gold else None
            verdict = float(same(gold, read(written))) if gold else None
        except Exception:  # noqa: BLE001, S110
            pass
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(verdict), flush=True)


def _as_exact(gold: Any, given: Any) -> bool:
    """Of two numbers that were called equal: whether they are. math-verify rounds to six places,
    where all small numbers are 0."""
    import sympy

    if not all(isinstance(x, sympy.Expr) and x.is_number and x.is_finite for x in (gold, given)):
        return True
    if gold.is_Rational and given.is_Rational:
        return gold == given
    a, b = (sympy.N(x, 40) for x in (gold, given))
    exact = not (gold.has(sympy.Float) or given.has(sympy.Float))

    return bool(abs(a - b) <= (1e-25 if exact else TOLERANCE) * max(abs(a), abs(b)))


if __name__ == "__main__":
    _serve(float(sys.argv[1]))
