"""Where rewards come from."""

import pytest
import torch

from dfpo.config import ConfigError, build_config
from dfpo.rewards.sources import load_function, load_reward

CPU = torch.device("cpu")


ROWS = [{"prompt": f"p{i}", "answer": str(i)} for i in range(4)]


TEXTS = ["0", "x", "2", ""]


IDS = [[1], [2, 3], [4], [5]]


def test_files_are_loaded_with_their_neighbours(tmp_path):
    (tmp_path / "neighbour_of_reward.py").write_text("VALUE = 3.0\n")
    path = tmp_path / "mine.py"
    path.write_text(
        "from neighbour_of_reward import VALUE\n"
        "def f(prompts, **_): return [VALUE] * len(prompts)\n"
    )
    reward = load_reward(build_config({"reward": f"{path}:f,{path}:f"}), None, CPU)
    assert reward.names == ("f", "f-2")
    assert reward(ROWS, TEXTS, IDS).values.tolist() == [6.0] * 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("absent.py:f", ["absent.py", "no file"]),
        ("{file}", ["FILE.py:FUNCTION"]),
        ("{file}:g", ["no function g"]),
        ("{broken}:f", ["broken.py", "SyntaxError"]),
        ("{raising}:f", ["raising.py", "line 2", "RuntimeError: no"]),
        ("{folder}", ["config.json"]),
    ],
)
def test_wrong_rewards_are_named(tmp_path, text, words):
    files = {
        "file": "f = len\n", "broken": "def f(:\n", "raising": "\nraise RuntimeError('no')\n"
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / f"{name}.py").write_text(content)
    places = {name: tmp_path / f"{name}.py" for name in files} | {"folder": tmp_path}
    with pytest.raises(ConfigError) as error:
        load_function(text.format(**places), CPU)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)
