"""Verifiers of final answers."""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from dfpo.tasks import verifiers


def test_boxes():
    assert verifiers.boxed("\\boxed{1} or \\boxed{\\frac{1}{2}} .") == "\\frac{1}{2}"
    assert verifiers.boxed("<think>\\boxed{1}</think> none") is None
    assert verifiers.boxed("\\boxed{\\frac{1}{2}") is None
    assert verifiers.compact("\\boxed{ 1, 2 }") == "1,2"
    assert verifiers.compact("\\boxed{}") is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("\\boxed{B}", "B"),
        ("\\boxed{\\text{B}}", "B"),
        ("\\boxed{(B) 5 m}", "B"),
        ("\\boxed{B) iron}", "B"),
        ("Answer: C? No. Answer: B", "B"),
        ("**The answer is (B).**", "B"),
        ("Answer: A, or \\boxed{B}", "B"),
        ("\\boxed{Both}", None),
        ("\\boxed{\\textbf{B}}", "B"),
        ("\\boxed{\\mathrm{(B)}\\text{ iron}}", "B"),
        ("\\boxed{$B$}", "B"),
        ("\\boxed{b}", "B"),
        ("\\boxed{B, because}", "B"),
        ("\\boxed{B) A metal}", "B"),
        ("\\boxed{I do not know}", None),
        ("\\boxed{i.e. iron}", None),
        ("\\boxed{A gas}", None),
        ("\\boxed{A and B}", None),
        ("\\boxed{(A) and (B)}", None),
        ("\\boxed{A, B}", None),
        ("**Answer:** (B)", "B"),
        ("Answer: B\nThat is iron.", "B"),
        ("The answer is B, which is a metal.", "B"),
        ("Answer: I think B.", None),
        ("The answer is A or B.", None),
        ("<think>Answer: A</think> I do not know.", None),
    ],
)
def test_choices(text, letter):
    assert verifiers.letter(text) == letter
    assert verifiers.same_choice(text, "B") == float(letter == "B")


def test_a_few_words():
    assert verifiers.same_words("\\boxed{the nile.}", "The Nile") == 1.0
    assert verifiers.same_words("\\boxed{Nile river}", "Nile") == 0.0
    assert verifiers.same_words("Nile", "Nile") == 0.0, "no box"


@pytest.mark.parametrize(
    ("found", "answer", "same"),
    [
        ("0.5", "\\frac{1}{2}", 1.0),
        ("1+x^2", "x^2+1", 1.0),
        ("(3,\\pi/2)", "\\left(3, \\frac{\\pi}{2}\\right)", 1.0),
        ("27", "27.0", 1.0),
        ("28", "27.0", 0.0),
        ("4.5\\times 10^{33}", "4.5e33", 1.0),
        ("4.6\\times 10^{33}", "4.5e33", 0.0),
        ("\\{2,1\\}", "\\{1,2\\}", 1.0),
        ("4", "", None),
    ],
)
def test_mathematics(found, answer, same):
    pytest.importorskip("math_verify")
    assert verifiers.same_mathematics(f"So \\boxed{{{found}}}.", answer) == same


HUNDRED_THOUSAND = {
    "nested": "\\boxed{" + "\\frac{1}{" * 5000 + "}" * 50000,
    "never closed": "\\boxed{" * 14000,
    "closed": "\\boxed{1}" * 11000,
    "thoughts": "</think>" * 12000,
    "tabs": "Answer" + " \t" * 50000 + "z",
    "said": "answer is " * 10000,
    "colons": "option :" * 12000,
    "options": "Option A, " * 10000,
    "text in text": "\\boxed{" + "\\text{" * 16000 + "}",
    "text in text, closed": "\\boxed{" + "\\text{" * 8000 + "}" * 8001,
    "one word": "\\boxed{" + "a" * 100000 + "}",
    "digits": "\\boxed{" + "9" * 100000 + "}",
    "arabic digits": "\\boxed{" + "\u0663" * 100000 + "}",
    "thousands": "\\boxed{1" + "{,}234" * 16000 + "}",
    "minus": "\\boxed{" + "\u2212" * 100000 + "5}",
    "surrogates": "\\boxed{" + "\ud800" * 100000 + "}",
}


@pytest.mark.parametrize("name", HUNDRED_THOUSAND)
def test_a_hundred_thousand_letters_take_no_second(name):
    """Of each kind of answer; spaces that two parts of a pattern shared took hours."""
    text, began = HUNDRED_THOUSAND[name], time.process_time()
    for kind in verifiers.KINDS.values():
        kind.extract(text)
        assert kind.verify(text, "B") == 0.0
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("found", "same"),
    [("\u0661\u0662", 1.0), ("\uff11\uff12", 1.0), ("\u221212", 0.0), ("12\u00b2", 0.0)],
)
def test_digits_and_signs_of_other_alphabets(found, same):
    pytest.importorskip("math_verify")
    assert verifiers.same_mathematics(f"\\boxed{{{found}}}", "12") == same


SLOW = [
    "(x+y+z)^{9999}", "\\sqrt[99999]{2}", "9999^{9999}", "\\binom{99999999}{9999999}",
    "1e999999999",
    "\\sum_{n=1}^{99999999} n^{-3}", "\\int_0^1 e^{\\sin(x^x)} dx",
]  # fmt: skip


@pytest.mark.parametrize("found", SLOW)
def test_what_takes_long_is_wrong_in_a_second(found):
    pytest.importorskip("math_verify")
    assert verifiers.same_mathematics("\\boxed{2/2}", "1") == 1.0  # the process is up
    assert verifiers.same_mathematics(f"\\boxed{{{found}}}", "12") == 0.0
    assert verifiers.same_mathematics("\\boxed{24/2}", "12") == 1.0


@pytest.fixture
def short(monkeypatch):
    """A process of our own that has little time for each answer; its pid stays its own."""
    pytest.importorskip("math_verify")
    process = verifiers._MathVerify()
    monkeypatch.setattr(verifiers, "SECONDS", 0.03)
    monkeypatch.setattr(verifiers, "_PROCESS", process)
    monkeypatch.setattr(verifiers, "TOWER", re.compile("never"))
    verifiers._compare.cache_clear()
    process._start()
    yield process
    if process.process is not None:
        process._stop()
    verifiers._compare.cache_clear()


def cpu_seconds(process):
    """Of a process and of those of its forks that have ended (Linux)."""
    fields = Path(f"/proc/{process.process.pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="reads Linux's /proc")
def test_sixty_four_hostile_answers_cost_their_limit_each_and_no_import(short):
    """Numbers of 10^10 digits: no signal reaches Python while one is computed."""
    pid, before = short.process.pid, cpu_seconds(short)
    hostile = [f"\\boxed{{10^{{10^{{{10 + i}}}}}}}" for i in range(64)]
    assert [verifiers.same_mathematics(text, "204") for text in hostile] == [0.0] * 64
    assert short.process.pid == pid, "its libraries were imported once"
    # 64 limits of 0.03 s, each as exact as the kernel's clock, and a fork each.
    assert 1.0 < cpu_seconds(short) - before < 64 * 0.06

    # What was asked before costs nothing.
    spent = cpu_seconds(short)
    assert [verifiers.same_mathematics(text, "204") for text in hostile] == [0.0] * 64
    assert cpu_seconds(short) - spent <= 0.02


def test_a_process_that_was_killed_or_says_nothing_is_started_anew(short, monkeypatch):
    monkeypatch.setattr(verifiers, "PATIENCE", 0.2)
    os.killpg(short.process.pid, signal.SIGSTOP)
    assert verifiers.same_mathematics("\\boxed{408/2}", "204") == 0.0
    assert short.process is None
    monkeypatch.undo()
    assert verifiers.same_mathematics("\\boxed{408/2}", "204") == 1.0


def test_a_verifier_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(verifiers, "find_spec", lambda name: None)
    monkeypatch.setattr(verifiers, "_PROCESS", verifiers._MathVerify())
    with pytest.raises(ImportError, match="pip install"):
        verifiers.same_mathematics("\\boxed{8/2}", "4")
