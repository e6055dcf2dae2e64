"""Other locales: files are UTF-8 in each, and names are what the system says they are."""

import json
import os
import subprocess
import sys

import pytest
import yaml

SMALL = [
    "--steps", "1", "--critic.warmup-steps", "0", "--eval.prompts", "0", "--eval.examples", "0",
    "--rollout.prompts", "2", "--rollout.samples", "2", "--rollout.max-new-tokens", "4",
    "--critic.num-quantiles", "5", "--plots", "false",
]  # fmt: skip
REWARD = """
def length(completions, größe, **_):
    print("größe", größe[0])
    return [float(len(text)) for text in completions]
"""
LOCALES = {
    "C": ({"LC_ALL": "C"}, "ä ö"),
    "POSIX": ({"LC_ALL": "POSIX"}, "ä ö"),
    # Without any letter but ASCII's, in names too.
    "ASCII": ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "a o"),
}


# C and POSIX, which are the same, ask less than ASCII.
@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.long] * (x != "ASCII")) for x in LOCALES]
)
def test_a_run_in_another_locale(tmp_path, name):
    """Spaces and letters in every path, letters in prompts, columns and what a reward prints."""
    settings, word = LOCALES[name]
    folder = tmp_path / word
    folder.mkdir()
    rows = [{"prompt": "1 plus 2 ", "größe": "ß"}, {"prompt": "3 plus 4 ", "größe": "ß"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"{word}.jsonl").write_text(text, encoding="utf-8")
    (folder / f"{word}.py").write_text(REWARD, encoding="utf-8")
    words = ["train", *SMALL, "--data", f"{word}.jsonl", "--reward", f"{word}.py:length"]
    ended = subprocess.run(
        [sys.executable, "-m", "dfpo", *words, "--runs-dir", f"{word} runs", "--name", word],
        cwd=folder, capture_output=True, env=os.environ | settings,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr.decode(errors="replace")
    stored = yaml.safe_load((folder / f"{word} runs" / word / "config.yaml").read_bytes())
    assert stored["data"] == str(folder / f"{word}.jsonl")
