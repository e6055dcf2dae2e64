"""`make release` in a repository of its own: what it refuses, and what it would do."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMITTER = {
    # As from a shell, whoever runs the tests: a make in a make says where it goes.
    **{name: text for name, text in os.environ.items() if not name.startswith("MAKE")},
    **dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "somebody"),
    **dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "somebody@example.org"),
}
NOTES = "# Changelog\n\n## [Unreleased]\n\n## [0.3.0] - 2030-01-02\n\n### Added\n\n- A name.\n"


@pytest.fixture
def release(tmp_path):
    """release(...) -> (exit status, stdout, stderr, tags); ``steps`` stand in for those of make."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "csrc").mkdir()

    def git(*words):
        return subprocess.run(
            ["git", *words], cwd=tmp_path, check=True, capture_output=True, text=True, env=COMMITTER
        ).stdout

    def run(version="0.3.0", pyproject="0.3.0", changelog=NOTES, tag=None, new=None, steps=None):
        if steps:
            (tmp_path / "Makefile").write_text(steps)
        (tmp_path / "pyproject.toml").write_text(f'[project]\nversion = "{pyproject}"\n')
        (tmp_path / "CHANGELOG.md").write_text(changelog)
        git("init", "--quiet")
        git("add", ".")
        git("commit", "--quiet", "--message", "all")
        if tag:
            git("tag", tag)
        if new:
            (tmp_path / new).touch()
        command = ["make", "release", f"VERSION={version}", "DRY=1", f"PYTHON={sys.executable}"]
        if steps:
            command = [sys.executable, ".ci/release.py", version, "python3", "torch"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=COMMITTER)
        tags = git("tag", "--list", "--format=%(refname:short) %(contents)")
        return done.returncode, done.stdout, done.stderr, tags.strip()

    return run


def test_it_says_what_it_would_do(release):
    status, out, _, tags = release(tag="v0.3.0rc1")
    assert status == 0 and tags == "v0.3.0rc1 all"
    commands = re.findall(r"^\+ (\w+ \w+)", out, re.M)
    assert commands == ["make test", "make wheel", "git tag"]
    assert "v0.3.0 --message '0.3.0\\n\\n### Added\\n\\n- A name.\\n'" in out
    assert "git push origin v0.3.0" in out.splitlines()[-1]


def test_the_tag_carries_the_notes(release):
    status, _, _, tags = release(steps="test wheel:\n\ttrue $@\n")
    assert status == 0 and tags == "v0.3.0 0.3.0\n\n### Added\n\n- A name."


def test_what_fails_leaves_no_tag(release):
    status, _, err, tags = release(steps="test:\n\ttrue\nwheel:\n\tfalse\n")
    assert (status, tags) == (1, "")
    assert err.splitlines()[-1] == "release: make wheel failed, so 0.3.0 has no tag"


REFUSED = {
    "form": ({"version": "0.3"}, "VERSION: is '0.3', must be x.y.z or x.y.zrcN"),
    "new file": ({"new": "draft"}, "the tree: ?? draft is not committed, must be clean"),
    "pyproject": ({"pyproject": "0.2.9"}, "pyproject.toml: version is 0.2.9, must be 0.3.0"),
    "same tag": ({"tag": "v0.3.0"}, "VERSION: is 0.3.0, must be above 0.3.0, which is released"),
    "older": ({"tag": "v0.10.0"}, "VERSION: is 0.3.0, must be above 0.10.0, which is released"),
    "no section": ({"changelog": "## [0.2.0] - 2029-01-01\n\n- b\n"}, "has no section, must have"),
    "no date": ({"changelog": "## [0.3.0]\n\n- b\n"}, "0.3.0 is dated '', must be - YYYY-MM-DD"),
    "nothing said": ({"changelog": "## [0.3.0] - 2029-01-01\n"}, "0.3.0 is empty, must say what"),
    "left over": (
        {"changelog": NOTES.replace("[Unreleased]\n", "[Unreleased]\n\n- b\n")},
        "CHANGELOG.md: Unreleased has entries, they must be under 0.3.0",
    ),
}


@pytest.mark.parametrize(("given", "said"), REFUSED.values(), ids=REFUSED)
def test_it_refuses_in_one_line(release, given, said):
    status, out, err, tags = release(**given)
    assert (
        status != 0
        and "+ " not in out
        and tags == (f"{given['tag']} all" if "tag" in given else "")
    )
    line, *make = err.splitlines()
    assert line.startswith("release: ") and said in line and len(make) == 1, err


def test_the_version_stands_in_one_place():
    """pyproject.toml alone: the package asks its metadata, and the tag carries it for citations."""
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    stated = re.compile(rf"version\W.*{re.escape(version)}", re.I)
    files = [ROOT / "CITATION.cff", ROOT / "setup.py", ROOT / "CMakeLists.txt", ROOT / "mkdocs.yml"]
    files += [*(ROOT / "dfpo").rglob("*.py"), *(ROOT / "dfpo_kernels").rglob("*.py")]
    assert [file for file in files if stated.search(file.read_text())] == []
