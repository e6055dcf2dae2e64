"""The command line's help and completion."""

import re
import shutil
import subprocess
import sys

import pytest

from dfpo.__main__ import COMMANDS, main
from dfpo.config import ALGORITHMS
from dfpo.config.build import options
from dfpo.config.choices import TABLES
from dfpo.config.flags import flags_of
from dfpo.config.noise import NOISES


@pytest.fixture
def said(monkeypatch, capsys):
    """What the command line prints on 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*words):
        try:
            status = main(list(words))
        except SystemExit as end:
            status = end.code
        assert status == 0
        return capsys.readouterr().out

    return run


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


def test_every_command_has_help(said):
    for name in COMMANDS:
        assert "usage: dfpo" in said(name, "--help")


def test_version(said):
    assert re.fullmatch(r"dfpo \d+\.\d+\.\d+\n", said("--version"))


def test_completion_is_a_script_that_bash_takes(said, tmp_path):
    script = tmp_path / "completion"
    script.write_text(said("completion", "bash"))
    assert "--rollout.prompts" in script.read_text()
    if shutil.which("bash"):
        subprocess.run(["bash", "-n", script], check=True)


def test_completion_without_its_library_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "shtab" else True)
    assert main(["completion", "bash"]) == 2
    assert capsys.readouterr().err.endswith("pip install shtab\n")


def test_flags_may_be_written_with_underscores(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--rollout.max_new_tokenz", "3"])
    assert "did you mean --rollout.max-new-tokens?" in capsys.readouterr().err


def test_a_file_serves_another_algorithm_too(tmp_path, capsys):
    """The same file makes the baseline: what that does not read is left out, and said."""
    path = tmp_path / "mine.yaml"
    path.write_text("critic.num_quantiles: 8\nsteps: 0\neval.prompts: 0\n")
    words = ["train", "--config", str(path), "--runs-dir", str(tmp_path / "runs")]
    assert main([*words, "--algorithm", "ppo", "--plots", "false"]) == 0
    assert "critic.num_quantiles left out: ppo does not read it" in capsys.readouterr().out


def test_python_dash_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "dfpo", "--version"], capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith(b"dfpo ")
