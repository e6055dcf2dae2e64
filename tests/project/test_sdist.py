"""The source archive holds what a build needs, made in a folder that git knows nothing of.
`make wheel` builds its wheel from this archive."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("csrc", "dfpo", "dfpo_kernels", "tests")
BUILT = ("__pycache__", "*.so", "*.pyc")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def test_everything_that_a_build_needs_is_in_it(tmp_path):
    tree = tmp_path / "tree"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns(*BUILT))
    for file in ROOT.iterdir():
        if file.is_file() and file.name != ".git":
            shutil.copy(file, tree)
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        held = {Path(*Path(name).parts[1:]) for name in opened.getnames()}
    sources = {path.relative_to(tree) for name in FOLDERS for path in (tree / name).rglob("*.*")}
    needed = {path for path in sources if (tree / path).is_file()}
    needed |= {Path(name) for name in ("CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE")}
    assert len(needed) > 300 and needed - held == set()
    assert not [path for path in held if path.suffix == ".so"]
