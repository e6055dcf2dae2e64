"""Gathers the pages of the documentation site in build/docs: the repository's Markdown where it
stands, what it links to, and a page for each public name.

`make docs` runs it and then mkdocs, which fails on a dead link.
"""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "build/docs"
PAGES = ("*.md", "docs/*.md", "results/*.md", "bench/*.md")
PACKAGES = ("dfpo", "dfpo_kernels", "dfpo_kernels.nn")


def public_names() -> dict[str, object]:
    """Dotted name -> object, of all that the packages promise."""
    found: dict[str, object] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            found.setdefault(f"{package}.{name}", getattr(module, name))
    return found


def reference(name: str, value: object) -> str:
    """A page: how to import it, then its docstring."""
    package, _, short = name.rpartition(".")
    page = f"# {name}\n\n```python\nfrom {package} import {short}\n```\n\n"
    if isinstance(value, ModuleType):
        return page + f"::: {value.__name__}\n"
    home = getattr(value, "__module__", None)
    if callable(value) and home:
        # By where it is written: a function and its folder share a name.
        return page + f"::: {home}.{value.__qualname__}\n"
    kind = type(value).__name__
    return page + f"A constant: a {kind} of {len(value)} names: {', '.join(map(str, value))}.\n"


def linked(page: Path) -> list[Path]:
    """Files of the repository that a page links to or shows."""
    targets = re.findall(r"\]\(((?!http|#)[^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    return [(page.parent / target).resolve() for target in targets]


def copy(path: Path) -> None:
    there = OUTPUT / path.relative_to(ROOT)
    if path.is_file() and not there.exists():
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, there)


def main() -> None:
    shutil.rmtree(OUTPUT, ignore_errors=True)
    pages = [page for pattern in PAGES for page in sorted(ROOT.glob(pattern))]
    for page in pages:
        copy(page)
        for path in linked(page):
            copy(path)

    folder = OUTPUT / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    names = public_names()
    for name, value in names.items():
        (folder / f"{name}.md").write_text(reference(name, value), encoding="utf-8")
    rows = "".join(f"- [`{name}`]({name}.md)\n" for name in names)
    index = f"# Reference\n\n```python\nimport dfpo, dfpo_kernels\n```\n\n{rows}"
    (folder / "index.md").write_text(index, encoding="utf-8")


if __name__ == "__main__":
    main()
