"""Any data set of the package reasoning-gym as a task, scored by its own verifier.

Questions are drawn as they are needed. Which of them are held out is decided by a hash of their
text, so that no evaluation question is ever trained on. Source: https://github.com/open-thought/reasoning-gym.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import yaml

HELD_OUT = 5  # one question in so many
TRIES = 64  # until a question falls on the side that is asked for
# Item i of a data set with seed s is drawn from seed s + i; numpy wants it below 2^32.
SEEDS = 2**31


@dataclass(frozen=True)
class GymTask:
    """One data set and its settings."""

    name: str
    chat: bool  # questions as a user's message, or as plain text
    build: Callable[[int, int], Any]  # (seed, size) -> data set
    verifier: Any  # any data set of the same settings

    def training_rows(self, seed: int, step: int, count: int) -> list[dict[str, Any]]:
        return [self._row(seed, i, False) for i in range(step * count, (step + 1) * count)]

    def evaluation_rows(self, seed: int, count: int) -> list[dict[str, Any]]:
        return [self._row(seed, i, True) for i in range(count)]

    def score(self, completions: list[Any], entry: list[dict], **_: Any) -> list[float]:
        """The verifier's score in [0, 1] of each answer: what stands between the last
        ``<answer>`` tags, or the whole text where there are none."""
        from reasoning_gym.utils import extract_answer

        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        answers = [extract_answer(text) or text.strip() for text in texts]
        return [
            float(self.verifier.score_answer(answer, item))
            for answer, item in zip(answers, entry, strict=True)
        ]

    def _row(self, seed: int, index: int, held_out: bool) -> dict[str, Any]:
        first = crc32(f"{seed} {held_out} {index}".encode()) % SEEDS
        data = self.build(first, TRIES)
        for entry in (data[i] for i in range(TRIES)):
            if (crc32(entry["question"].encode()) % HELD_OUT == 0) == held_out:
                break
        question = entry["question"]
        prompt = [{"role": "user", "content": question}] if self.chat else question
        return {"prompt": prompt, "answer": entry["answer"], "entry": entry, "domain": self.name}


def open_task(text: str, chat: bool) -> GymTask:
    """Reads "NAME" or "NAME,KEY=VALUE,..."; the settings are the data set's own.

    Raises ValueError where the package is missing, or a name or setting is wrong.
    """
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError:
        raise ValueError(
            "reasoning_gym is not installed; pip install 'dfpo[reasoning-gym]'"
        ) from None

    name, *pairs = text.split(",")
    if name not in DATASETS:
        close = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"reasoning_gym has no data set {name!r}{hint}")

    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair!r} in {text!r} is no setting, must be KEY=VALUE")
        settings[key.strip()] = yaml.safe_load(value)

    def build(seed: int, size: int) -> Any:
        return create_dataset(name, seed=seed, size=size, **settings)

    try:
        verifier = build(0, 1)
        _ = verifier[0]
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"reasoning_gym:{text}: {' '.join(str(error).split())}") from None

    return GymTask(name, chat, build, verifier)
