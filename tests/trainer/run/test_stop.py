"""How a command ends."""

import subprocess
import sys

from dfpo.__main__ import main

SMALL = ["--steps", "3", "--critic.warmup-steps", "1", "--eval.prompts", "4"]


SMALL += ["--rollout.prompts", "3", "--rollout.samples", "2"]


SMALL += ["--plots", "false"]


def run(folder, *flags):
    name = f"run{len(list(folder.iterdir()))}"
    status = main(["train", *SMALL, "--runs-dir", str(folder), "--name", name, *flags])
    assert status == 0
    return folder / name


def test_who_reads_may_go(tmp_path):
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
