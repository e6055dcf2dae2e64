"""The command line as a whole: help, version, completion."""

import re
import shutil
import subprocess
import sys

from dfpo.__main__ import COMMANDS, main


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


def test_python_dash_m_is_the_command():
    done = subprocess.run([sys.executable, "-m", "dfpo", "--version"], capture_output=True)
    assert done.returncode == 0 and done.stdout.startswith(b"dfpo ")
