"""Two tasks of short answers for a small chat model, and their exact verifier.

`larger` asks for the larger of two numbers and `last` for the last of a few words, each after one
solved example. A right answer is the number or the word, and nothing else.

    python examples/short_answers.py DIRECTORY

writes prompts to train on, to choose settings by (validation) and to report (test). No prompt
stands in two files. Out of domain are numbers of three digits, and four words that training never
uses.
"""

import json
import random
import sys
from itertools import permutations
from pathlib import Path

SEEN = """apple arrow basket bottle branch bridge butter button candle carpet castle chair cheese
    circle cloud copper corner cotton desert dinner doctor dragon engine farmer feather finger
    flower forest garden ginger hammer harbor honey island jacket kitten ladder lemon letter
    market mirror monkey morning mother mountain needle ocean orange paper pencil pepper planet
    pocket rabbit ribbon river"""
UNSEEN = """rocket saddle school shadow shoulder silver spider spring stone summer sunset table
    ticket tiger tomato tunnel turtle valley violin wagon wallet weather whistle window winter
    wolf yellow zebra"""
HELD_OUT = 150  # prompts a task


def larger(pair: tuple[int, int], split: str) -> dict:
    return _row("larger", split, ("3 and 8", "8"), f"{pair[0]} and {pair[1]}", str(max(pair)))


def last(words: tuple[str, ...], split: str) -> dict:
    return _row("last", split, ("house sugar train", "train"), " ".join(words), words[-1])


def _row(task: str, split: str, solved: tuple[str, str], given: str, answer: str) -> dict:
    question = {"larger": "Larger of {}?", "last": "Last word of: {}"}[task]
    messages = [
        ("system", "Answer in one word."),
        ("user", question.format(solved[0])),
        ("assistant", solved[1]),
        ("user", question.format(given)),
    ]
    prompt = [{"role": role, "content": content} for role, content in messages]
    return {"prompt": prompt, "answer": answer, "domain": task, "split": split}


def reward(completions: list, answer: list[str], **columns: list) -> list[float]:
    """1 for the answer itself, 0 for all else."""
    texts = [messages[0]["content"] for messages in completions]
    return [float(text == right) for text, right in zip(texts, answer, strict=True)]


def files() -> dict[str, list[dict]]:
    """Name -> rows."""
    draw = random.Random(0)
    pairs = draw.sample(list(permutations(range(10, 100), 2)), 1000 + 2 * HELD_OUT)
    words = draw.sample(list(permutations(SEEN.split(), 3)), 1000 + 2 * HELD_OUT)
    long_pairs = draw.sample(list(permutations(range(100, 1000), 2)), HELD_OUT)
    long_words = draw.sample(list(permutations(UNSEEN.split(), 4)), HELD_OUT)

    def rows(start: int, end: int) -> list[dict]:
        first = [larger(pair, "id") for pair in pairs[start:end]]
        return first + [last(some, "id") for some in words[start:end]]

    test = rows(0, HELD_OUT)
    test += [larger(pair, "ood") for pair in long_pairs]
    test += [last(some, "ood") for some in long_words]
    return {
        "test": test,
        "validation": rows(HELD_OUT, 2 * HELD_OUT),
        "train": rows(2 * HELD_OUT, 1000 + 2 * HELD_OUT),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files().items():
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
