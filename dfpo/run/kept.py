"""Kept answers: what the policy said every few steps, what it was told, what the critic thought.

``runs/NAME/answers/step-000004.parquet`` holds some answers of one step, a row each; together they
read as one table (docs/answers.md). A file is written beside and renamed, so that a kill leaves it
whole or not at all. Their number and size are bounded, however long the run and its answers are.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dfpo.config import Config, ConfigError
from dfpo.config.types import Answers, Estimate, LeftOut, Prompt, Rollout, Targets
from dfpo.tasks.source import domain_of

if TYPE_CHECKING:
    import pyarrow
    from transformers import PreTrainedTokenizerBase

FOLDER = "answers"
NO_REWARD = "no reward"
MOST_STEPS = 128  # files of one run: where it has more, every other one goes
MOST_QUANTILES, MOST_TOKENS, MOST_LETTERS = 16, 512, 8192  # of one token, answer, text


@dataclass(frozen=True)
class KeptAnswer:
    """One row of the table; values are in units of return."""

    step: int
    sample: int  # the answer's number, unique over the run
    prompt: str
    domain: str
    expected: str | None  # the prompt's "answer" column, where it has one
    answer: str
    truncated: bool
    told: float | None  # the reward that training saw; None: training left the answer out
    clean: float | None  # what the verifier said; None: nothing
    token_ids: list[int]  # T
    tokens: list[str]  # T
    advantages: list[float]  # T, what the policy's loss took; empty where told is None
    # T, predicted mean return before each token; empty without a critic and where told is None
    values: list[float]
    spreads: list[float]  # T, its standard deviation over all quantiles
    quantiles: list[list[float]]  # T x at most MOST_QUANTILES
    final: list[float]  # quantiles after the last token

    @property
    def noisy(self) -> bool:
        """Whether noise changed the reward."""
        return self.told != self.clean

    @property
    def changes(self) -> list[float]:
        """T, by how much each token moves the value."""
        if not self.values:
            return []
        after = [*self.values[1:], sum(self.final) / len(self.final)]
        return [b - a for a, b in zip(self.values, after, strict=True)]

    def verdict(self, middle: float) -> str:
        """ "right" where the clean reward is above the middle of its range, else "wrong", or
        NO_REWARD where there is none."""
        if self.clean is None:
            return NO_REWARD
        return "right" if self.clean > middle else "wrong"

    def words(self, middle: float) -> str:
        """The verdict, and the reward before and after noise."""
        if self.clean is None:
            return NO_REWARD
        clean, told = reward_text(self.clean), reward_text(self.told)
        rewards = f"told {told}, clean {clean}" if self.noisy else f"reward {clean}"
        return f"{self.verdict(middle)}, {rewards}"


def reward_text(reward: float | None) -> str:
    return "none" if reward is None else f"{reward:.4g}"


def reward_range(config: Config) -> tuple[float, float]:
    """[0, 1] of settings that no run has completed."""
    low, high = config.reward.low, config.reward.high
    return (0.0, 1.0) if low is None or high is None else (low, high)


def middle_of(config: Config) -> float:
    """What parts right from wrong: the middle of the reward's range."""
    return sum(reward_range(config)) / 2


def is_due(step: int, every: int) -> bool:
    """Whether this step's answers are kept: the first's, and each ``every``th's."""
    return every > 0 and (step == 0 or (step + 1) % every == 0)


def keep(
    run: Path,
    tokenizer: PreTrainedTokenizerBase,
    rollout: Rollout,
    *,
    estimate: Estimate | None,
    targets: Targets | None,  # None: no answer has a reward
    config: Config,
    step: int,
) -> None:
    """Writes some answers of a step that is due, and thins out the steps before it."""
    every = spacing(step, config.answers_every)
    if not is_due(step, every):
        return
    rows = [
        _left_out_row(place, tokenizer, rollout.left_out, step)
        if place < 0
        else _row(place, tokenizer, rollout, estimate=estimate, targets=targets, step=step)
        for place in choose_answers(rollout, config.answers_kept)
    ]
    write(run, step, rows)
    for path in _files(run):
        if not is_due(step_of(path), every):
            path.unlink()


def spacing(step: int, every: int) -> int:
    """Steps between two that are kept, so that at most MOST_STEPS are by ``step``."""
    while every and (step + 1) // every >= MOST_STEPS:
        every *= 2
    return every


def choose_answers(rollout: Rollout, most: int) -> list[int]:
    """Places of the answers that are kept, whatever their rewards: two or more to each of the
    first prompts of every domain. Those below 0 are places in ``left_out``, from its end."""
    answers, groups = rollout.answers, rollout.groups.tolist()
    places = list(range(len(answers)))
    rows, ids = [*answers.rows], answers.sample_ids.tolist()
    if rollout.left_out is not None:
        gone = rollout.left_out
        places += range(-len(gone.answers), 0)
        rows, ids = rows + gone.answers.rows, ids + gone.answers.sample_ids.tolist()
        groups += gone.groups.tolist()

    # In the order in which they were drawn.
    order = sorted(range(len(places)), key=ids.__getitem__)
    members: dict[int, list[int]] = {}
    for i in order:
        members.setdefault(groups[i], []).append(i)

    seen: Counter[str] = Counter()
    turns = []
    for answered in members.values():
        domain = domain_of(rows[answered[0]])
        turns.append((seen[domain], answered))
        seen[domain] += 1

    each = max(2, -(-most // max(1, len(turns))))
    in_turn = [
        i for _, answered in sorted(turns, key=lambda turn: turn[0]) for i in answered[:each]
    ]
    return [places[i] for i in sorted(in_turn[:most], key=ids.__getitem__)]


def _row(
    place: int,
    tokenizer: PreTrainedTokenizerBase,
    rollout: Rollout,
    *,
    estimate: Estimate | None,
    targets: Targets,
    step: int,
) -> KeptAnswer:
    length = min(len(rollout.answers.token_ids[place]), MOST_TOKENS)
    known = np.zeros((0, 0), np.float32)
    final = known
    if estimate is not None:
        known = estimate.quantiles[place, :length].float().cpu().numpy()
        final = estimate.final[place].float().cpu().numpy()[None]

    return KeptAnswer(
        step=step,
        **_said(place, tokenizer, rollout.answers),
        truncated=bool(rollout.samples.truncated[place]),
        told=float(rollout.rewards[place]),
        clean=float(rollout.clean_rewards[place]),
        advantages=targets.advantages[place, :length].float().tolist(),
        values=known.mean(-1).tolist() if len(known) else [],
        spreads=known.std(-1).tolist() if len(known) else [],
        quantiles=few_quantiles(known).tolist(),
        final=few_quantiles(final).reshape(-1).tolist(),
    )


def _left_out_row(
    place: int, tokenizer: PreTrainedTokenizerBase, left_out: LeftOut, step: int
) -> KeptAnswer:
    clean = float(left_out.clean_rewards[place])
    return KeptAnswer(
        step=step,
        **_said(place, tokenizer, left_out.answers),
        truncated=bool(left_out.truncated[place]),
        told=None,
        clean=clean if math.isfinite(clean) else None,
        advantages=[], values=[], spreads=[], quantiles=[], final=[],
    )  # fmt: skip


def _said(place: int, tokenizer: PreTrainedTokenizerBase, answers: Answers) -> dict[str, Any]:
    """The prompt and the answer to it, as columns of the table."""
    row, ids = answers.rows[place], answers.token_ids[place][:MOST_TOKENS]
    expected = row.get("answer")
    return {
        "sample": int(answers.sample_ids[place]),
        "prompt": _text(shown_prompt(row["prompt"])),
        "domain": _text(str(domain_of(row))),
        "expected": None if expected is None else _text(str(expected)),
        "answer": _text(answers.texts[place]),
        "token_ids": ids,
        "tokens": [_text(tokenizer.decode([token])) for token in ids],
    }


def few_quantiles(quantiles: np.ndarray) -> np.ndarray:  # [T, Q] -> [T, at most MOST_QUANTILES]
    """Sorted, and where there are more, read off between them at evenly spaced levels."""
    ordered, count = np.sort(quantiles, -1), quantiles.shape[-1]
    if count <= MOST_QUANTILES:
        return ordered
    place = (np.arange(MOST_QUANTILES) + 0.5) / MOST_QUANTILES * count - 0.5
    below = np.floor(place).astype(int)
    share = (place - below).astype(ordered.dtype)
    return ordered[:, below] * (1 - share) + ordered[:, below + 1] * share


def shown_prompt(prompt: Prompt) -> str:
    """A chat as a line a message."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {_content(message['content'])}" for message in prompt)


def _content(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _text(text: str) -> str:
    """What UTF-8 can say of it, and not more than MOST_LETTERS."""
    return text[:MOST_LETTERS].encode("utf-8", "replace").decode()


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    kinds = {
        "int": pa.int64(), "str": pa.string(), "str | None": pa.string(), "bool": pa.bool_(),
        "float": pa.float32(), "float | None": pa.float32(), "list[int]": pa.list_(pa.int32()),
        "list[str]": pa.list_(pa.string()), "list[float]": pa.list_(pa.float32()),
        "list[list[float]]": pa.list_(pa.list_(pa.float32())),
    }  # fmt: skip
    return pa.schema([(field.name, kinds[field.type]) for field in dataclasses.fields(KeptAnswer)])


def write(run: Path, step: int, rows: list[KeptAnswer]) -> None:
    """One step's file, in place of what was there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    # A name that no reader of the folder takes for a part of the table.
    beside = folder / ".partial"
    pq.write_table(
        pa.Table.from_pylist([vars(row) for row in rows], _schema()), beside, compression="zstd"
    )
    os.replace(beside, folder / f"step-{step:06d}.parquet")


def forget_after(run: Path, steps: int) -> None:
    """Leaves the answers of the first ``steps`` steps alone: a resumed run does the others anew."""
    for path in _files(run):
        if step_of(path) >= steps:
            path.unlink()


def kept_steps(run: Path) -> list[int]:
    return [step_of(path) for path in _files(run)]


def read_kept(run: Path, step: int) -> list[KeptAnswer]:
    """The kept answers of one step, in their order. Raises ConfigError where the file is broken or
    gone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = run / FOLDER / f"step-{step:06d}.parquet"
    try:
        return [KeptAnswer(**row) for row in pq.read_table(path, schema=_schema()).to_pylist()]
    except (OSError, pa.ArrowException, TypeError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"run: cannot read {path}: {reason}") from None


def _files(run: Path) -> list[Path]:
    """In the order of steps."""
    paths = (run / FOLDER).glob("step-*.parquet")
    return sorted((path for path in paths if path.stem[5:].isdigit()), key=step_of)


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
