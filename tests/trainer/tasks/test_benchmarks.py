"""Files in the form of public benchmarks, and the verifiers of their answers."""

import csv
import json

import pyarrow
import pytest
from pyarrow import parquet

from dfpo.config import ConfigError, build_config
from dfpo.tasks import benchmarks
from dfpo.tasks.benchmarks import FORMATS, LETTERS, read_folder
from dfpo.tasks.source import open_source

# Rows with the columns of the publishers' files; the texts are ours.
LIGHT_R1 = [
    {"conversations": [{"from": "user", "value": asked}, {"from": "assistant", "value": told}]}
    for asked, told in (
        (
            "What is $\\frac{1}{4} + \\frac{1}{4}$?",
            "<think>\\boxed{1}?</think> \\boxed{\\frac{1}{2}}",
        ),
        ("?", "No box."),
        ("2 + 2", "\\boxed{4}"),
    )
]
SUPERGPQA = {
    "uuid": "1", "question": "Which is a metal?", "options": ["Neon", "Argon", "Iron"],
    "answer": "Iron", "answer_letter": "C", "discipline": "Science", "field": "Chemistry",
    "subfield": "Inorganic Chemistry", "difficulty": "easy", "is_calculation": False,
}  # fmt: skip
MATH500 = {
    "problem": "2 + 2", "solution": "It is $\\boxed{4}$.", "answer": "4", "subject": "Prealgebra",
    "level": 1, "unique_id": "test/prealgebra/1.json",
}  # fmt: skip
AIME24 = {"id": 60, "problem": "p", "solution": "s", "answer": "204", "url": "u", "year": "2024"}
MINERVA = {"question": "Luminosity in erg/s?", "answer": "4.5e33"}
AMC23 = {"id": 0, "question": "How far?", "answer": 27.0, "url": "u"}
GPQA = {
    "Question": "Which is a gas?", "Correct Answer": " Neon\n", "Incorrect Answer 1": "Iron",
    "Incorrect Answer 2": "Tin", "Incorrect Answer 3": "Lead", "Subdomain": "Chemistry",
}  # fmt: skip
HLE = [
    {"question": "Name it.", "image": "", "answer": "The Nile", "answer_type": "exactMatch"},
    {"question": "A. x\nB. y", "image": "", "answer": "B", "answer_type": "multipleChoice"},
    {"question": "See.", "image": "data:image/png", "answer": "x", "answer_type": "exactMatch"},
]
SIMPLEQA = {"metadata": "{}", "problem": "Which river?", "answer": "Nile"}


@pytest.fixture
def folder(tmp_path):
    for part in ("train", "eval"):
        (tmp_path / part).mkdir()
    (tmp_path / "train" / "light_r1.json").write_text(json.dumps(LIGHT_R1))
    evaluation = tmp_path / "eval"
    rows = {"math500": MATH500, "aime24": AIME24, "minerva": MINERVA, "amc23": AMC23}
    for name, row in rows.items():
        (evaluation / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    parquet.write_table(pyarrow.Table.from_pylist([SUPERGPQA]), evaluation / "supergpqa.parquet")
    with (evaluation / "gpqa.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, GPQA)
        writer.writeheader()
        writer.writerow(GPQA)
    (evaluation / "hle.json").write_text(json.dumps(HLE))
    (evaluation / "simpleqa.json").write_text(json.dumps([SIMPLEQA]))
    return tmp_path


def test_each_format_is_read(folder):
    trained, held = read_folder(folder, chat=False)
    # Of three conversations one has no answer, and one is a question of MATH-500.
    assert [(row["answer"], row["domain"]) for row in trained] == [("\\frac{1}{2}", "light_r1")]
    assert trained[0]["prompt"].startswith("What is $\\frac{1}{4} + \\frac{1}{4}$?\n\nReason")
    found = {}
    for row in held:
        found.setdefault(row["domain"], []).append((row["kind"], row["answer"], row["split"]))
    assert found["math500"] == [("math", "4", "id")]
    assert found["aime24"] == [("math", "204", "id")]
    assert found["minerva"] == [("math", "4.5e33", "id")]
    assert found["amc23"] == [("math", "27.0", "id")]
    assert found["supergpqa"] == [("choice", "C", "ood")]
    assert found["hle"] == [("text", "The Nile", "ood"), ("choice", "B", "ood")]
    assert found["simpleqa"] == [("text", "Nile", "ood")]
    assert found.keys() | {"light_r1"} == FORMATS.keys()


def test_options_carry_letters_and_those_of_gpqa_are_shuffled(folder):
    rows = {row["domain"]: row for row in read_folder(folder, chat=True)[1]}
    text = rows["supergpqa"]["prompt"][0]["content"]
    assert text.startswith("Which is a metal?\nA) Neon\nB) Argon\nC) Iron\n\n")
    row = rows["gpqa"]
    assert f"{row['answer']}) Neon\n" in row["prompt"][0]["content"] + "\n"
    letters = {
        benchmarks._gpqa({**GPQA, "Question": f"Which {number}?"}).answer for number in range(64)
    }
    assert letters == set(LETTERS[:4])


def test_training_on_science_makes_mathematics_out_of_domain(folder):
    (folder / "train" / "light_r1.json").unlink()
    (folder / "eval" / "supergpqa.parquet").rename(folder / "train" / "supergpqa.parquet")
    splits = {row["domain"]: row["split"] for row in read_folder(folder, chat=False)[1]}
    assert splits == {
        "math500": "ood", "aime24": "ood", "minerva": "ood", "amc23": "ood",
        "gpqa": "id", "hle": "id", "simpleqa": "id",
    }  # fmt: skip


def test_the_folder_is_a_task(folder):
    config = build_config({"task": f"benchmarks:{folder}", "eval.prompts": 5})
    source = open_source(config, chat=True)
    assert len(source.training(0, 3)) == 3
    assert source.held_out["gpqa"].keys() == {"ood"}
    assert source.held_out["amc23"].keys() == {"id"}
    assert source.metric == "accuracy"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "eval" / "notes.txt").touch(), "notes.txt is no known file"),
        (lambda f: (f / "eval" / "gpqa.csv").write_text("a,b\n1,2\n"), "gpqa.csv, row 1 is not as"),
        (lambda f: (f / "train" / "light_r1.json").unlink(), "train holds no file, must hold"),
        (lambda f: (f / "eval" / "hle.json").write_text("[]"), "hle.json holds no question"),
        (lambda f: (f / "eval" / "hle.json").write_text("[{"), "hle.json is not JSON"),
    ],
)
def test_wrong_folders_are_named(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ConfigError, match=message):
        open_source(build_config({"task": f"benchmarks:{folder}"}), chat=True)


def test_scores_and_votes():
    chat = [
        [{"role": "assistant", "content": text}] for text in ("\\boxed{A}", "\\boxed{nile}", "5")
    ]
    assert benchmarks.score(chat, ["A", "Nile", "5"], ["choice", "text", "math"]) == [1.0, 1.0, 0.0]
    assert benchmarks.extract("\\boxed{\\text{B}}", "gpqa") == "B"
    assert benchmarks.extract("\\boxed{x + 1}", "light_r1") == "x+1"
    assert benchmarks.extract("x + 1", "light_r1") is None
