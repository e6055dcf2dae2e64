"""This tree in one file, for a machine with a GPU that reaches no network:

    python bench/gpu_day/pack.py tree.tar.gz
    tar xzf tree.tar.gz && make gpu-day OUT=results     there

What git ignores stays here: the environment, builds and runs.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 64 * 2**20


def pack(target: Path) -> int:
    """Writes the files that git knows or would take up, as they are now, and returns their count.

    Raises:
        ValueError: the file is larger than MOST_BYTES.
    """
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    # A file that was removed and not yet committed is still listed.
    paths = [name for name in names.split("\0") if name and (ROOT / name).is_file()]
    with tarfile.open(target, "w:gz") as archive:
        for path in paths:
            archive.add(ROOT / path, path)
    if (size := target.stat().st_size) > MOST_BYTES:
        raise ValueError(f"{target}: has {size} bytes, must have at most {MOST_BYTES}")
    return len(paths)


if __name__ == "__main__":
    print(pack(Path(sys.argv[1])), "files")
