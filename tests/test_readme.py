"""What README shows works as it stands there."""

import re
from pathlib import Path

import pytest

from dfpo.algorithms import ALGORITHMS
from dfpo.cli import build_parsers

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_python_examples_run():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})


def test_commands_parse():
    """Every `dfpo ...` line of README is a command that the parser takes."""
    lines = re.findall(r"^dfpo (.*?)\s*(?:#.*)?$", README, flags=re.M)
    assert lines
    for line in lines:
        words = line.split()
        parser, _ = build_parsers(words[0])
        if "--help" in words:
            with pytest.raises(SystemExit):
                parser.parse_args(words)
        else:
            parser.parse_args(words)


def test_algorithms_are_listed():
    for name in ALGORITHMS:
        assert f"| `{name}` |" in README


def test_linked_files_exist():
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\(((?!http|#)[^)]+)\)", README):
        assert (root / target).exists(), target
