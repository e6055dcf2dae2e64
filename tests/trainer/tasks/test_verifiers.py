"""Verifiers of final answers."""

import re

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


def test_an_expression_that_never_ends_is_wrong_and_stops_nothing(monkeypatch):
    pytest.importorskip("math_verify")
    assert verifiers.same_mathematics("\\boxed{2/2}", "1") == 1.0  # the process is up
    monkeypatch.setattr(verifiers, "SECONDS", 0.5)
    monkeypatch.setattr(verifiers, "TOWER", re.compile("never"))
    # A number of 10^10 digits: no signal reaches Python while it is computed.
    assert verifiers.same_mathematics("\\boxed{10^{10^{10}}}", "204") == 0.0
    monkeypatch.undo()
    assert verifiers.same_mathematics("\\boxed{408/2}", "204") == 1.0


def test_a_verifier_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(verifiers, "find_spec", lambda name: None)
    monkeypatch.setattr(verifiers, "_PROCESS", verifiers._MathVerify())
    with pytest.raises(ImportError, match="pip install"):
        verifiers.same_mathematics("\\boxed{8/2}", "4")
