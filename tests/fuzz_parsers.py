"""Parsers of what strangers write, under a fuzzer that follows which lines its input reaches.

    python tests/fuzz_parsers.py FOLDER -max_total_time=600

`make fuzz-parsers` installs atheris and runs this. Each input ends in a value or in a ConfigError
of one line. What ends otherwise is printed, once for each place, and left in FOLDER; libFuzzer
itself stops at an input that takes longer than -timeout.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dfpo", "yaml"]):
    from dfpo.config import ConfigError, build_config, load_yaml
    from dfpo.config.untrusted import check_layers
    from dfpo.study.recipe import load_recipe
    from dfpo.tasks import verifiers
    from dfpo.tasks.files import read_rows

ROOT = Path(__file__).parents[1]
SCRATCH = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
SEEDS = (
    b"<think>no</think> so \\boxed{\\frac{1}{2}} 1,234", b"Answer: (B)",
    b'{"prompt": "1 plus 2"}\n',
    b'{"prompt": [{"role": "user", "content": "hi"}], "answer": "3"}\n',
    b"flip=0.3+gaussian=0.1", b"math:flip=0.3;none", b"steps: 3\ncritic: {kind: scalar}\n",
    b'{"num_hidden_layers": 4}',
    *(path.read_bytes() for path in sorted((ROOT / "recipes").glob("*.yaml"))),
)  # fmt: skip
seen: set[str] = set()


def file_of(name: str, data: bytes) -> Path:
    path = SCRATCH / name
    path.write_bytes(data)
    return path


def read_answer(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")
    for kind in verifiers.KINDS.values():
        kind.extract(text)
    verifiers.same_choice(text, "B")
    verifiers.same_words(text, "B")
    verifiers.TOWER.search(verifiers.plain(text))


TARGETS = (
    read_answer,
    lambda data: read_rows("data", file_of("a.jsonl", data)),
    lambda data: read_rows("data", file_of("a.parquet", data)),
    lambda data: read_rows("data", file_of("a.arrow", data)),
    lambda data: build_config(load_yaml(file_of("a.yaml", data))),
    lambda data: load_recipe(file_of("a.yaml", data), {}),
    lambda data: build_config({"noise": data.decode(errors="surrogateescape")}),
    lambda data: build_config({"risk": data.decode(errors="surrogateescape")}),
    lambda data: check_layers("model", file_of("config.json", data).parent),
)


def one_input(data: bytes) -> None:
    """The first byte chooses the parser."""
    try:
        TARGETS[data[0] % len(TARGETS) if data else 0](data[1:])
    except ConfigError as error:
        if "\n" in str(error) or len(str(error)) > 4000:
            report(data, f"a message of {len(str(error))} letters: {str(error)[:200]!r}")
    except Exception as error:  # noqa: BLE001
        place = traceback.extract_tb(error.__traceback__)[-1]
        report(data, f"{type(error).__name__} at {place.filename}:{place.lineno}: {error}"[:300])


def report(data: bytes, what: str) -> None:
    place = what.partition(": ")[0]
    if place not in seen:
        seen.add(place)
        name = Path(sys.argv[1]) / f"wrong-{len(seen)}"
        name.write_bytes(data)
        print(f"WRONG {name}: {what}", flush=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS):
        for parser in range(len(TARGETS)):
            (folder / f"seed-{number}-{parser}").write_bytes(bytes([parser]) + seed)
    atheris.Setup([sys.argv[0], str(folder), "-timeout=20", *sys.argv[2:]], one_input)
    atheris.Fuzz()
