"""What a checkpoint says of itself: every file's size and SHA-256, which run it is of, which step.

The manifest is the last file written, in one canonical form that carries its own digest. So a bit
that has changed anywhere in the checkpoint, this file included, is noticed before anything is read.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

NAME = "manifest.json"
CHUNK = 2**22
PIECES, PIECE = 64, 2**18


def write_manifest(folder: Path, run_id: str, step: int) -> None:
    """Describes all files that ``folder`` holds now."""
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / NAME).write_bytes(_text({"run": run_id, "step": step, "files": files}).encode())


def problem_of(folder: Path, run_id: str, step: int) -> str | None:
    """What is wrong with a checkpoint, in a few words; None where it is whole."""
    try:
        text = (folder / NAME).read_bytes().decode()
        said = json.loads(text)
        content = {key: said[key] for key in ("run", "step", "files")}
        listed = {name: (item["size"], item["sha256"]) for name, item in said["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{NAME} cannot be read"

    if text != _text(content):
        return f"{NAME} is not as it was written"
    if (said["run"], said["step"]) != (run_id, step):
        return "it is of another run or step"

    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()} - {NAME}
    for name in sorted(listed.keys() - there):
        return f"{name} is missing"

    for name in sorted(there - listed.keys()):
        return f"{name} does not belong to it"

    for name, (size, sha256) in listed.items():
        path = folder / name
        try:
            if path.is_symlink() or path.stat().st_size != size:
                return f"{name} has another size"
            if digest(path) != sha256:
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"

    return None


def fingerprint(model: Path) -> str:
    """Tells a model from one that was trained further, without reading all of it: the digest of
    sizes and of PIECES pieces of each file of weights."""
    sha = hashlib.sha256()
    files = [model] if model.is_file() else sorted(
        path for path in model.glob("*") if path.suffix in (".safetensors", ".json", ".bin")
    )  # fmt: skip

    for path in files:
        size = path.stat().st_size
        sha.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for i in range(PIECES):
                file.seek(size * i // PIECES)
                sha.update(file.read(PIECE))

    return sha.hexdigest()


def digest(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def _text(content: dict[str, Any]) -> str:
    body = json.dumps(content, sort_keys=True, indent=1)
    own = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps(content | {"sha256": own}, sort_keys=True, indent=1) + "\n"
