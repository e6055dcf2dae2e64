"""The words of a risk measure."""

import pytest

from dfpo.config.risk import Risk, parse_risk


def test_words_are_read():
    assert parse_risk("neutral") == Risk("neutral", None)
    assert parse_risk(" cvar-lower=0.1 ") == Risk("cvar-lower", 0.1)
    assert parse_risk("wang=-0.5") == Risk("wang", -0.5)
    assert parse_risk("cvar-upper").parameter == 0.25 and parse_risk("wang").parameter == 0.75


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cvar", "is 'cvar', must be neutral, or one of"),
        ("neutral=1", "is 'neutral=1', must be neutral, or one of"),
        ("cvar-lower=a", r"'a' must be in \(0, 1\]"),
        ("cvar-lower=0", r"0 must be in \(0, 1\]"),
        ("cvar-upper=1.5", r"1.5 must be in \(0, 1\]"),
        ("wang=6", r"6 must be a number in \[-5, 5\]"),
        ("wang=nan", r"nan must be a number in \[-5, 5\]"),
    ],
)
def test_what_is_wrong_is_said(text, said):
    with pytest.raises(ValueError, match=said):
        parse_risk(text)
