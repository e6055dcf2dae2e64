"""Kept answers in the terminal."""

import pytest
from small_runs import answer, make_run

from dfpo.__main__ import main
from dfpo.run.show import CIVIDIS, colour_at, coloured_tokens, wants_colour


def shown(capsys, run, *flags):
    assert main(["show", str(run), *flags]) == 0
    return capsys.readouterr().out


def test_an_answer_in_a_few_lines(tmp_path, capsys):
    run = make_run(tmp_path / "run", kept={4: [answer(step=4)]})
    assert shown(capsys, run).splitlines() == [
        "step 4, math, wrong, told 1, clean 0: changed by noise",
        "  prompt    1 plus 2",
        "  expected  3",
        "  answer    it is 4",
        # 0.5 before "it", 0.625 before "is", 0.125 before "4"; the end's mean is 0.
        "  value     0.5 before the first token, 0 after the last; moves most, -0.5, at token 2, "
        "'is'",
    ]


def test_what_is_asked_for(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert shown(capsys, run).count("step 9, ") == 3
    assert shown(capsys, run, "--step", "0", "--right").count("step 0, math, right") == 1
    assert "science" not in shown(capsys, run, "--domain", "math", "--wrong")
    assert shown(capsys, run, "--domain", "science", "--right") == (
        "none of the 3 kept answers is what was asked for\n"
    )
    assert shown(capsys, run, "--most", "1").endswith("1 of 3 answers; --most 3 shows all\n")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--step", "3"], "step: is 3, must be one whose answers were kept: 0, 4, 9"),
        (["--domain", "law"], "domain: is 'law', must be one of math, science"),
    ],
)
def test_wrong_input_is_one_line(tmp_path, capsys, flags, words):
    run = make_run(tmp_path / "run")
    assert main(["show", str(run), *flags]) == 2
    assert capsys.readouterr().err == f"dfpo show: error: {words}\n"


def test_a_run_that_kept_none(tmp_path, capsys):
    assert main(["show", str(make_run(tmp_path / "run", kept={}))]) == 2
    assert "--answers-every 1 or more" in capsys.readouterr().err


def test_nothing_in_an_answer_steers_the_terminal(tmp_path, capsys):
    hostile = "\x1b]0;title\x07\x1b[2J\r\u202e reversed"
    kept = {0: [answer(prompt=hostile, answer=hostile, domain=hostile, tokens=[hostile] * 4)]}
    said = shown(capsys, make_run(tmp_path / "run", kept=kept))
    assert all(c.isprintable() for c in said.replace("\n", ""))


def test_colours_grow_with_the_value_and_only_on_a_terminal(monkeypatch):
    from dfpo.config import build_config

    assert [colour_at(i / 4) for i in range(5)] == list(CIVIDIS)
    config = build_config({"reward.low": 0, "reward.high": 1})
    line = coloured_tokens(answer(values=[0.0, 0.5, 1.0, float("nan")]), config)
    places = [line.index(";".join(map(str, CIVIDIS[i]))) for i in (0, 2, 4)]
    assert places == sorted(places)

    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert wants_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour()
