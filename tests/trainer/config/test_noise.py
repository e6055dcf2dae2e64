"""The words of a noise: how they are read, what is wrong with some, what they say."""

import pytest
import yaml

from dfpo.config.build import flatten
from dfpo.config.noise import Noise, parse_noise

MIXED = (
    "math:flip=.15;science:scale=5,heavy=2.5;dialogue:scale=.2,normal=.1,outliers=.1,outlier_size=3"
)


def test_parse():
    assert parse_noise("none") == Noise() and not Noise()
    assert parse_noise("flip=0.3") == Noise({"flip": 0.3})
    assert parse_noise("outliers=0.05, fp=0.2,fn=0.1") == Noise(
        {"fp": 0.2, "fn": 0.1, "outliers": 0.05}
    )
    assert parse_noise("flip=0.3,per=prompt") == Noise({"flip": 0.3}, per="prompt")
    assert parse_noise("vote=16,missing=.2") == Noise({"vote": 16, "missing": 0.2})


def test_kinds_are_applied_in_the_order_of_the_table():
    assert list(parse_noise("missing=.1,heavy=1,flip=.2,vote=4").levels) == [
        "vote", "flip", "heavy", "missing",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no noise"),
        ("flip", "is no noise"),
        ("salt=.1", "'salt=.1' is no noise"),
        ("flip=", "flip= must be a number in"),
        ("flip=x", "flip=x must be a number in"),
        ("flip=-0.1", "flip=-0.1 is out of range"),
        ("flip=1.1", "flip=1.1 is out of range"),
        ("flip=nan", "flip=nan is out of range"),
        ("fp=.1,fp=.2", "fp is given twice"),
        ("flip=.1,fp=.1", "flip beside fp or fn"),
        ("length=.7,flip=.1", "length beside flips"),
        ("length=.4", r"length=.4 is out of range, must be an accuracy in \[0.5, 1\]"),
        ("vote=1.5", "vote=1.5 must be a number of answers"),
        ("vote=0", "vote=0 is out of range"),
        ("heavy=inf", "heavy=inf is out of range"),
        ("per=prompt", "per=prompt alone"),
        ("flip=.1,per=day", "per=day must be one of rollout, prompt, kind"),
        ("per=kind,size=fixed", "per=kind alone"),
        ("flip=.1,size=answer_length", "size alone, must say of what, as in normal=0.3"),
        ("normal=.1,size=big", "size=big must be one of fixed, answer_length, prompt_length"),
        ("normal=2..1", r"normal=2..1 must be a range LOW..HIGH"),
        ("normal=0..1", r"normal=0..1 must be a range LOW..HIGH"),
        ("flip=.1...2", "flip=.1...2 must be a number in"),
        ("scale=0", r"scale=0 is out of range, must be a factor in \[1e-6, 1e6\]"),
        ("outlier_size=3", "outlier_size without outliers"),
        ("math:flip=.1;math:fp=.1", "math is given twice"),
        ("math:flip=.1;science", "'science' is no part of a mixture"),
        ("math:vote=4", "must stand for all answers alone"),
        ("by=level;", "is no mixture"),
        ("math:flip=2", "flip=2 is out of range"),
    ],
)
def test_parse_errors(text, message):
    with pytest.raises(ValueError, match=message):
        parse_noise(text)


def test_a_mixture_in_yaml():
    text = "noise: {by: level, 3: {flip: 0.1, per: kind}, x: none, '*': {normal: 0.1..2}}"
    ((name, value),) = flatten(yaml.safe_load(text))
    assert name == "noise"
    assert parse_noise(value) == parse_noise("by=level;3:flip=.1,per=kind;x:none;*:normal=.1..2")
    assert (
        dict(flatten({"noise": {"flip": 0.3, "per": "prompt"}}))["noise"] == "flip=0.3,per=prompt"
    )


@pytest.mark.parametrize(
    ("text", "hides"),
    [("flip=.3", False), ("heavy=1", False), ("outliers=.1", False), ("normal=.1", True),
     ("heavy=.1..2", True), ("heavy=1,size=answer_length", True), ("scale=5", True),
     ("offset=1", True), (MIXED, True), ("math:heavy=1;science:none", True),
     ("math:flip=.1", False)],
)  # fmt: skip
def test_which_noises_hide_the_range(text, hides):
    assert parse_noise(text).hides_range is hides
