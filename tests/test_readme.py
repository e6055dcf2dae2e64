"""What README and docs show works as it stands there."""

import importlib
import re
import runpy
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest
from tiny_models import make_model, make_reward_model

from dfpo.__main__ import main
from dfpo.config import ALGORITHMS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# The same commands with less work.
FEW = ["--eval.prompts", "1", "--rollout.max-new-tokens", "8"]
LESS = ["--steps", "1", "--critic.warmup-steps", "0", "--rollout.prompts", "3", *FEW]
LESS += ["--rollout.samples", "2", "--eval.examples", "0"]


def ids(page):
    return page.stem


def commands(page):
    """Every `dfpo ...` line of a page's shell blocks, in order, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("dfpo ")]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files that docs show, searches on few prompts, and the models that they name."""
    folder = tmp_path_factory.mktemp("docs")
    for page in PAGES:
        shown = re.findall(
            r"^`([\w.-]+)`:\n\n```\w+\n(.*?)```", page.read_text(), flags=re.S | re.M
        )
        for name, content in shown:
            (folder / name).write_text(content.replace("prompts: 256", "prompts: 4"))
    make_model(folder / "my-model", context=512)
    make_reward_model(folder / "judge")
    return folder


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=ids)
def test_commands_run(page, files, tmp_path, monkeypatch):
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    for _, *words in commands(page):
        if page == PAGES[0] and words == ["compare", "--quick"]:
            continue  # of docs/compare.md too
        if "--help" in words:
            with pytest.raises(SystemExit) as stop:
                main(words)
            assert stop.value.code == 0
            continue
        less = {
            "train": [*LESS, "--plots", "false"], "eval": FEW, "info": [],
            "show": [], "runs": [], "report": [],
            "critic": ["--answers", "1", "--plays", "2"], "merge": [],
            "audit": ["--answers", "8"], "memory": [],
            "compare": [*LESS, "--seeds", "1"], "tune": LESS,
        }[words[0]]  # fmt: skip
        if "--resume" in words:
            less = ["--steps", "2", "--plots", "false"]
        assert main([*words, *less]) == 0, words


def test_every_page_starts_with_a_command_or_a_picture():
    start = r"# .*\n\n(```bash\n(dfpo|make|pytest|pip|torchrun) |!\[)"
    for page in PAGES[1:]:
        assert re.match(start, page.read_text()), page


def test_readme_is_short():
    assert len(PAGES[0].read_text().splitlines()) <= 200


def test_the_site_has_every_page_and_every_public_name():
    """What `make docs` shows: nothing in docs/ is left out of its menu, and each name that the
    packages promise has a page. Dead links make that build fail."""
    menu = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES[1:]:
        assert f"docs/{page.name}" in menu, page
    site = runpy.run_path(str(ROOT / "docs/site.py"))
    names = site["public_names"]()
    for package in ("dfpo", "dfpo_kernels", "dfpo_kernels.nn"):
        for name in importlib.import_module(package).__all__:
            value = names[f"{package}.{name}"]
            page = site["reference"](f"{package}.{name}", value)
            assert page.startswith(f"# {package}.{name}\n\n```python\n")
            assert isinstance(value, Mapping) or (value.__doc__ or "").strip(), name


def test_errors_are_said_as_shown(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = re.findall(
        r"^\| `dfpo (.*?)` \| `(.*?)` \|", (ROOT / "docs/errors.md").read_text(), re.M
    )
    assert rows
    for command, said in rows:
        try:
            status = main(shlex.split(command))
        except SystemExit as stop:
            status = stop.code
        assert status == 2
        assert capsys.readouterr().err == f"dfpo train: error: {said}\n"
    assert list(tmp_path.iterdir()) == []


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"^make ([\w-]+)", page.read_text(), flags=re.M):
            assert re.search(rf"^{target}:", makefile, flags=re.M), (page, target)


def test_python_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["mine.py", *LESS, "--plots", "false"])
    kept = dict(ALGORITHMS)
    for page in (PAGES[0], ROOT / "docs/kernels.md", ROOT / "docs/algorithms.md"):
        blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.S)
        assert blocks
        for block in blocks:
            exec(compile(block, page.name, "exec"), {})
    assert list((tmp_path / "runs").iterdir()), "the example of an algorithm trains"
    ALGORITHMS.clear()
    ALGORITHMS.update(kept)


def test_algorithms_are_listed():
    for name in ALGORITHMS:
        assert f"| `{name}` |" in (ROOT / "docs/algorithms.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_linked_files_exist(page):
    for target in re.findall(r"\]\(((?!http|#)[^)#]+)[^)]*\)", page.read_text()):
        assert (page.parent / target).exists(), target


# Of another project, and a name that stands for many.
ELSEWHERE = {"examples/run_ppo.py", "bench/shapes/MODEL.json"}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_files_that_a_page_names_are_there(page):
    rooms = "dfpo|dfpo_kernels|tests|bench|csrc|recipes|results|examples|docs"
    named = set(re.findall(rf"(?<![\w./-])((?:{rooms})/[\w./-]+\.\w+)\b", page.read_text()))
    missing = {name for name in named - ELSEWHERE if not (ROOT / name).exists()}
    assert not missing
