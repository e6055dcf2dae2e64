"""The tables of what a run can be made of."""

import pytest

from dfpo.config import build_config
from dfpo.config.choices import ENGINES, REWARD_SOURCES, TABLES
from dfpo.config.tables import readers

ROWS = [
    (setting, name, choice)
    for setting, table in {**TABLES, "engine": ENGINES, "reward": REWARD_SOURCES}.items()
    for name, choice in table.items()
]


@pytest.mark.parametrize("setting, name, choice", ROWS, ids=lambda x: x if type(x) is str else "")
def test_every_row_has_code_and_one_line_of_help(setting, name, choice):
    # Empty where whoever reads the setting knows the row by its name.
    assert not choice.target or callable(choice.load())
    assert choice.doc and "\n" not in choice.doc and len(choice.doc) < 100


@pytest.mark.parametrize("setting, name, choice", ROWS, ids=lambda x: x if type(x) is str else "")
def test_every_row_reads_settings_that_exist(setting, name, choice):
    config = build_config({})
    for dotted in choice.reads:
        section, _, field = dotted.rpartition(".")
        owner = getattr(config, section) if section else config
        assert field == "*" or hasattr(owner, field), dotted


def test_who_reads_a_setting_by_name_or_by_section():
    critics = TABLES["critic.kind"]
    assert readers(critics, "critic.heads") == ["scalar", "quantile"]
    assert readers(critics, "coef.flow") == ["value_flow", "quantile"]
    assert readers(critics, "policy.clip") == []
