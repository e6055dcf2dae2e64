"""What a manifest notices, and how models are told apart. Any harm at all: tests/test_fuzz.py."""

import hashlib
import json

import pytest

from dfpo.run.manifest import NAME, digest, fingerprint, problem_of, write_manifest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/weights").write_bytes(b"abc")
    (tmp_path / "state").write_bytes(b"")
    write_manifest(tmp_path, "a run", 3)
    return tmp_path


def test_every_file_is_described(folder):
    files = json.loads((folder / NAME).read_text())["files"]
    # SHA-256 of "abc" (FIPS 180-2, B.1) and of nothing.
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert files == {
        "policy/weights": {"size": 3, "sha256": abc}, "state": {"size": 0, "sha256": nothing},
    }  # fmt: skip
    assert problem_of(folder, "a run", 3) is None


def test_harm_is_named(folder):
    assert problem_of(folder, "a run", 4) == "it is of another run or step"
    (folder / "more").write_text("")
    assert problem_of(folder, "a run", 3) == "more does not belong to it"
    (folder / "more").unlink()
    (folder / "policy/weights").write_bytes(b"abd")
    assert problem_of(folder, "a run", 3) == "policy/weights is not as it was written"
    (folder / "policy/weights").write_bytes(b"abcd")
    assert problem_of(folder, "a run", 3) == "policy/weights has another size"
    (folder / "policy/weights").unlink()
    assert problem_of(folder, "a run", 3) == "policy/weights is missing"
    (folder / NAME).write_text((folder / NAME).read_text().replace('"step": 3', '"step": 4'))
    assert problem_of(folder, "a run", 4) == f"{NAME} is not as it was written"
    (folder / NAME).unlink()
    assert problem_of(folder, "a run", 3) == f"{NAME} cannot be read"


def test_a_large_file_is_read_in_chunks(tmp_path):
    content = bytes(range(256)) * 20_000  # more than one of 4 MiB
    (tmp_path / "large").write_bytes(content)
    assert digest(tmp_path / "large") == hashlib.sha256(content).hexdigest()


def test_a_fingerprint_changes_with_the_weights_and_not_with_what_lies_beside(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(300))
    (tmp_path / "config.json").write_text("{}")
    first = fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("a card")
    assert fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(bytes(299) + b"\x01")
    assert fingerprint(tmp_path) != first
    (tmp_path / "model.safetensors").write_bytes(bytes(301))
    assert fingerprint(tmp_path) != first
