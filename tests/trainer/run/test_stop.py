"""How a command ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dfpo.config import ConfigError
from dfpo.run.stop import RunError, Stopped, StopRequest, exit_status


def raises(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("steps: is x"), 2, "dfpo train: error: steps: is x\n"),
        (RunError("no reward"), 1, "dfpo train: no reward\n"),
        (Stopped(signal.SIGINT, None), 130,
         "dfpo train: stopped by SIGINT; nothing was written\n"),
        (Stopped(signal.SIGTERM, Path(__file__).parent), 143,
         f"dfpo train: stopped by SIGTERM; continue with: dfpo train --resume "
         f"{Path(__file__).parent}\n"),
        (Stopped(signal.SIGTERM, None, "try again"), 143,
         "dfpo train: stopped by SIGTERM; try again\n"),
    ],
)  # fmt: skip
def test_an_end_is_one_line_and_a_status(capsys, error, status, said):
    assert exit_status("dfpo train", raises(error)) == status
    assert capsys.readouterr().err == said


def test_what_went_well_says_nothing_and_what_nobody_foresaw_is_not_hidden(capsys):
    assert exit_status("dfpo train", lambda: None) == 0
    assert capsys.readouterr().err == ""
    with pytest.raises(ZeroDivisionError):
        exit_status("dfpo train", lambda: 1 / 0)


def test_several_processes_have_one_voice(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert exit_status("dfpo train", raises(ConfigError("steps: is x"))) == 2
    assert capsys.readouterr().err == ""


def test_a_signal_waits_for_the_end_of_a_step_and_the_second_does_not(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest().listen() as stop:
        with stop.step():
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signum == signal.SIGTERM
            assert "finishing this step; once more to stop at once" in capsys.readouterr().err
            with pytest.raises(Stopped):
                os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_who_reads_may_go():
    """`dfpo train --help-all | head`: no traceback, no message of Python's at its end."""
    command = [
        sys.executable,
        "-c",
        "import sys; from dfpo.run.stop import exit_status\n"
        "sys.exit(exit_status('dfpo', lambda: [print('line', flush=True) for _ in range(10**5)]))",
    ]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "line\n"
    run.stdout.close()
    said = run.stderr.read()
    assert run.wait() == 141 and said == ""
