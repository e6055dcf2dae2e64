"""Checks, tests, builds and tags one release.

    python .ci/release.py VERSION PYTHON TORCH

`make release VERSION=1.2.0` calls it. With DRY=1 in the environment it checks, and says which
commands would follow. Nothing is pushed or uploaded: it ends with those commands.
"""

from __future__ import annotations

import datetime
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Final releases and candidates: what pip orders the way people read it.
VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)(?:rc(\d+))?")


class Refused(Exception):
    """One line: what was looked at, what it was and what it must be."""


def main(version: str, python: str, torch: str) -> None:
    try:
        check(version)
        notes = changelog_section(version)
    except Refused as refused:
        raise SystemExit(f"release: {refused}") from None

    for command in steps(version, python, torch, notes):
        print("+", shlex.join(command).replace("\n", "\\n"), flush=True)
        if os.environ.get("DRY"):
            continue
        if subprocess.run(command, cwd=ROOT).returncode:
            raise SystemExit(f"release: {' '.join(command[:2])} failed, so {version} has no tag")

    print(f"then: git push origin v{version} && twine upload dist/dfpo-{version}*")


def steps(version: str, python: str, torch: str, notes: str) -> list[list[str]]:
    """What follows the checks. The tag is the last step, so whatever fails leaves none."""
    settings = [f"PYTHON={python}", f"TORCH={torch}"]
    return [
        ["make", "test", *settings],
        ["make", "wheel", *settings],
        # A heading of the notes starts with the sign that git takes for a comment.
        ["git", "tag", "--annotate", "--cleanup=whitespace", f"v{version}", "--message", notes],
    ]


def check(version: str) -> None:
    if not VERSION.fullmatch(version):
        raise Refused(f"VERSION: is {version!r}, must be x.y.z or x.y.zrcN")
    if dirty := git("status", "--porcelain").splitlines():
        raise Refused(f"the tree: {dirty[0].strip()} is not committed, must be clean")
    stated = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    if stated != version:
        raise Refused(f"pyproject.toml: version is {stated}, must be {version}")
    newest = max(released(), key=order, default=None)
    if newest and order(version) <= order(newest):
        raise Refused(f"VERSION: is {version}, must be above {newest}, which is released")


def changelog_section(version: str) -> str:
    """What the changelog says of this version, its heading first."""
    text = (ROOT / "CHANGELOG.md").read_text()
    found = re.finditer(r"^## \[(.+?)\](.*)\n((?:(?!## ).*\n)*)", text, re.M)
    sections = {match[1]: match for match in found}
    if version not in sections:
        today = datetime.date.today().isoformat()
        raise Refused(f"CHANGELOG.md: has no section, must have '## [{version}] - {today}'")
    _, heading, body = sections[version].groups()
    if not re.fullmatch(r" - \d{4}-\d{2}-\d{2}", heading):
        raise Refused(f"CHANGELOG.md: {version} is dated {heading.strip()!r}, must be - YYYY-MM-DD")
    if not body.strip():
        raise Refused(f"CHANGELOG.md: {version} is empty, must say what changed")
    if "Unreleased" in sections and sections["Unreleased"][3].strip():
        raise Refused(f"CHANGELOG.md: Unreleased has entries, they must be under {version}")
    return f"{version}\n\n{body.strip()}\n"


def released() -> list[str]:
    tags = [tag.removeprefix("v") for tag in git("tag", "--list", "v*").split()]
    return [tag for tag in tags if VERSION.fullmatch(tag)]


def order(version: str) -> tuple[float, ...]:
    """1.2.0rc1 < 1.2.0rc2 < 1.2.0."""
    *numbers, candidate = VERSION.fullmatch(version).groups()
    return (*map(int, numbers), float(candidate or "inf"))


def git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
