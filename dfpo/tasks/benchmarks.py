"""Public benchmarks of mathematics and science from files that lie at hand.

A folder holds `train/` and `eval/`, and in them the files of `FORMATS` as their publishers made
them, named by format: `train/light_r1.json`, `eval/gpqa.csv`. Evaluation files of a field that is
trained on are in domain, those of the other field out of domain.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dfpo.tasks.verifiers import KINDS, boxed

Row = dict[str, Any]
LETTERS = "ABCDEFGHIJ"
ASK = {
    "math": "Reason step by step, and put your final answer within \\boxed{}.",
    "choice": "Reason step by step, and put the letter of your choice within \\boxed{}.",
    "text": "Answer in a few words, and put them within \\boxed{}.",
}


@dataclass(frozen=True)
class Question:
    """What a verifier of `kind` needs."""

    text: str
    answer: str
    kind: str  # of `KINDS`


@dataclass(frozen=True)
class Format:
    """How one publisher writes a question; `read` gives None for what text cannot ask."""

    field: str  # "math" or "science"
    source: str
    read: Callable[[Row], Question | None]


def _light_r1(row: Row) -> Question | None:
    """Turns of a conversation; the answer is what the demonstration puts in its last box."""
    turns = {turn["from"]: turn["value"] for turn in reversed(row["conversations"])}
    answer = boxed(turns["assistant"])
    return None if answer is None else Question(turns["user"], answer, "math")


def _math(question: str, answer: str) -> Callable[[Row], Question]:
    return lambda row: Question(row[question], str(row[answer]), "math")


def _supergpqa(row: Row) -> Question:
    return _choice(row["question"], row["options"], row["answer_letter"])


def _gpqa(row: Row) -> Question:
    """The right answer comes first in the file: the options are shuffled by the question's text."""
    options = [row["Correct Answer"], *(row[f"Incorrect Answer {i}"] for i in (1, 2, 3))]
    order = list(range(4))
    random.Random(row["Question"]).shuffle(order)
    letter = LETTERS[order.index(0)]
    return _choice(row["Question"], [options[i].strip() for i in order], letter)


def _hle(row: Row) -> Question | None:
    """Questions with a picture are left out; options stand in the question's text."""
    if row.get("image"):
        return None
    kind = "choice" if row["answer_type"] == "multipleChoice" else "text"
    return Question(row["question"], row["answer"], kind)


def _choice(question: str, options: list[str], letter: str) -> Question:
    lines = [f"{name}) {option}" for name, option in zip(LETTERS, options, strict=False)]
    return Question("\n".join([question, *lines]), letter, "choice")


FORMATS = {
    "light_r1": Format("math", "qihoo360/Light-R1-SFTData", _light_r1),
    "math500": Format("math", "HuggingFaceH4/MATH-500", _math("problem", "answer")),
    "aime24": Format("math", "HuggingFaceH4/aime_2024", _math("problem", "answer")),
    "minerva": Format("math", "math-ai/minervamath", _math("question", "answer")),
    "amc23": Format("math", "math-ai/amc23", _math("question", "answer")),
    "supergpqa": Format("science", "m-a-p/SuperGPQA", _supergpqa),
    "gpqa": Format("science", "Idavidrein/gpqa", _gpqa),
    "hle": Format("science", "cais/hle", _hle),
    "simpleqa": Format(
        "science", "basicv8vc/SimpleQA", lambda row: Question(row["problem"], row["answer"], "text")
    ),
}


def read_folder(folder: Path, chat: bool) -> tuple[list[Row], list[Row]]:
    """Training rows and evaluation rows, with columns prompt, answer, kind, domain and split.

    A training question that is also an evaluation question is left out. Raises ValueError naming
    the file, and the row in it, that is wrong.
    """
    trained, held = (_read_part(folder / part, chat) for part in ("train", "eval"))
    fields = {FORMATS[row["domain"]].field for row in trained}
    for row in held:
        row["split"] = "id" if FORMATS[row["domain"]].field in fields else "ood"
    asked = {str(row["prompt"]) for row in held}
    return [row for row in trained if str(row["prompt"]) not in asked], held


def _read_part(folder: Path, chat: bool) -> list[Row]:
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    if not files:
        raise ValueError(
            f"{folder} holds no file, must hold one or more of {', '.join(FORMATS)} as .json, "
            ".jsonl, .csv or .parquet"
        )
    return [row for path in files for row in _read_file(path, chat)]


def _read_file(path: Path, chat: bool) -> list[Row]:
    if path.stem not in FORMATS or path.suffix not in READERS:
        raise ValueError(
            f"{path} is no known file, must be one of {', '.join(FORMATS)} with one of "
            f"{', '.join(READERS)}"
        )

    rows = []
    for number, raw in enumerate(READERS[path.suffix](path), start=1):
        try:
            question = FORMATS[path.stem].read(raw)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path}, row {number} is not as in {FORMATS[path.stem].source}: "
                f"{type(error).__name__}: {error}"
            ) from None
        if question is not None:
            text = f"{question.text.strip()}\n\n{ASK[question.kind]}"
            rows.append(
                {
                    "prompt": [{"role": "user", "content": text}] if chat else text,
                    "answer": question.answer,
                    "kind": question.kind,
                    "domain": path.stem,
                }
            )

    if not rows:
        raise ValueError(f"{path} holds no question that text can ask")
    return rows


def _read_json(path: Path) -> list[Row]:
    return _parse(path, path.read_text(encoding="utf-8"))


def _read_jsonl(path: Path) -> list[Row]:
    lines = path.read_text(encoding="utf-8").split("\n")
    return [_parse(path, line) for line in lines if line.strip()]


def _parse(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def _read_csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _read_parquet(path: Path) -> list[Row]:
    from pyarrow import parquet

    return parquet.read_table(path).to_pylist()


READERS = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def score(
    completions: list[Any], answer: list[str], kind: list[str], **_: Any
) -> list[float | None]:
    """1.0 for each right answer, 0.0 for a wrong one, None where the verifier cannot tell."""
    rows = zip(completions, answer, kind, strict=True)
    return [KINDS[name].verify(_text(completion), gold) for completion, gold, name in rows]


def extract(completion: str, domain: str) -> str | None:
    """The final answer, as votes compare it: the last box without spaces, the letter of a choice
    where the whole format is choices."""
    kind = "choice" if domain in ("gpqa", "supergpqa") else "math"
    return KINDS[kind].extract(completion)


def _text(completion: Any) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]
