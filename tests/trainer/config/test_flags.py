"""Settings as flags, and their help."""

import re

import pytest

from dfpo.__main__ import main
from dfpo.config import ALGORITHMS
from dfpo.config.build import options
from dfpo.config.choices import TABLES
from dfpo.config.flags import flags_of
from dfpo.config.noise import NOISES


def test_help_is_two_screens_of_what_people_set(said):
    text = said("train", "--help")
    assert len(text.splitlines()) <= 80
    for flag in ("--algorithm", "--model", "--data", "--reward ", "--noise", "--help-all"):
        assert flag in text
    assert "--critic.weight-mode" not in text


def test_help_all_has_every_setting_and_a_line_for_each_choice(said):
    text = said("train", "--help-all")
    for dotted, _, _ in options():
        assert flags_of(dotted)[-1] in text
    rows = [name for table in TABLES.values() for name in table]
    for name in (*rows, *ALGORITHMS):
        assert re.search(rf"^ +{re.escape(name)}: ", text, re.MULTILINE), name
    for kind in NOISES:
        assert re.search(rf"^ +{kind}=X: ", text, re.MULTILINE), kind


def test_flags_may_be_written_with_underscores(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--rollout.max_new_tokenz", "3"])
    assert "did you mean --rollout.max-new-tokens?" in capsys.readouterr().err
