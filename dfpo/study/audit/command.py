"""``dfpo audit``: how wrong is my reward, and where, as the critic that it taught sees it."""

from __future__ import annotations

import dataclasses
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tabulate import tabulate

from dfpo.config import ConfigError, build_config, stored_settings
from dfpo.config.rules import predicts
from dfpo.run import checkpoint
from dfpo.run.given import Given
from dfpo.run.records import write_json
from dfpo.run.setup import NOTHING, set_up
from dfpo.study.audit.answers import Judged, judge_answers
from dfpo.study.audit.estimates import (
    GroupReport,
    concordance,
    distance,
    group_report,
    surprise,
    wrong_label,
)

ALL = "all"
COLUMNS = {
    "answers": "audited", "mean": "told reward", "skill": "critic's skill", "flips": "labels wrong",
    "false_positives": "false positives", "false_negatives": "false negatives",
    "spread": "spread",
}  # fmt: skip
MEANING = """\
  critic's skill: chance that it expects more of an answer that is told to be better, of graded
    rewards better than most; .5 is none
  labels wrong, false positives, false negatives: by how often labels disagree with the critic where
    it is surest; wrong answers told to be right, right answers told to be wrong
  spread: deviation of graded rewards around what the critic expects, what it does not know included
  intervals: 95 %, by a bootstrap over prompts"""


@dataclass(frozen=True)
class Audit:
    """What a run's critic makes of its reward."""

    run: Path
    by: str
    groups: dict[str, GroupReport]  # "all", then the value of a column
    answers: pa.Table  # a row an answer, the most surprising reward first
    # How well surprise, and a scalar critic's residual, find the labels that injected noise made
    # wrong: areas under ROC curves. None where nothing is known to be wrong.
    known_errors: dict[str, float] | None

    def __str__(self) -> str:
        return audit_report(self, 5)


def audit(run: Path, answers: int, by: str, given: Given = NOTHING) -> Audit:
    """Audits a run, and writes audit.json and audit.parquet into it. Raises ConfigError for what is
    no run, or has no critic."""
    config = build_config(stored_settings("run", run))
    if not predicts(config):
        raise ConfigError(f"run: {run} is of {config.algorithm}, must be one that has a critic")
    if checkpoint.newest(run) is None:
        raise ConfigError(f"run: {run} holds no checkpoint yet")

    setup = set_up(config, run, given)
    checkpoint.restore(setup)
    audited = audit_answers(run, judge_answers(setup, answers, by), by)
    pq.write_table(audited.answers, run / "audit.parquet")
    write_json(run / "audit.json", to_plain(audited))
    return audited


def audit_answers(run: Path, judged: Judged, by: str) -> Audit:
    """What judged answers say, all together and by group."""
    names, numbers = np.array(judged.groups), judged.prompt_numbers
    whole = np.arange(len(names))
    groups = {ALL: whole} | {name: np.flatnonzero(names == name) for name in dict.fromkeys(names)}
    reports = {
        str(name): group_report(judged.told[rows], judged.quantiles[rows], numbers[rows])
        for name, rows in groups.items()
    }

    columns = {key: np.full(len(names), np.nan) for key in ("probability", "distance", "wrong")}
    for name, rows in groups.items():
        # Each answer by what is known of its own group.
        if name != ALL:
            told, quantiles = judged.told[rows], judged.quantiles[rows]
            columns["probability"][rows] = surprise(told, quantiles)
            columns["distance"][rows] = distance(told, quantiles)
            columns["wrong"][rows] = wrong_label(told, quantiles, reports[str(name)])

    return Audit(run, by, reports, answer_table(judged, columns), known_errors(judged, columns))


def answer_table(judged: Judged, columns: dict[str, np.ndarray]) -> pa.Table:
    """A row an answer: the least probable reward first, of equally probable ones the farthest."""
    order = np.lexsort((-columns["distance"], columns["probability"]))
    low, high = np.quantile(judged.quantiles, [0.05, 0.95], axis=1)
    texts = {"prompt": judged.prompts, "answer": judged.texts, "group": judged.groups}
    numbers = {
        "told": judged.told, "expected": judged.mean, "low": low, "high": high, **columns,
    }  # fmt: skip
    if (judged.told != judged.clean).any():
        numbers["clean"] = judged.clean
    return pa.table(
        {name: [values[i] for i in order] for name, values in texts.items()}
        # Not a number is no number: null.
        | {name: pa.array(values[order], from_pandas=True) for name, values in numbers.items()}
    )


def known_errors(judged: Judged, columns: dict[str, np.ndarray]) -> dict[str, float] | None:
    """How well errors that the run's own noise made are found, beside a scalar's residual."""
    wrong = judged.told != judged.clean
    if not wrong.any() or wrong.all():
        return None
    residual = np.abs(judged.told - judged.mean)
    return {
        "surprise": concordance(-columns["probability"], wrong),
        "residual": concordance(residual, wrong),
        "share": float(wrong.mean()),
    }


def audit_report(audited: Audit, show: int) -> str:
    """Tables of the groups and of the most surprising rewards, and what they mean."""
    rows = [
        [name, *(_cell(getattr(report, key)) for key in COLUMNS)]
        for name, report in audited.groups.items()
    ]
    parts = [tabulate(rows, [audited.by, *COLUMNS.values()], disable_numparse=True), MEANING]
    parts += [
        f"{name}: the critic knows too little to say: its skill is {_cell(report.skill)}, must "
        "surely be above .55; train it for longer, or with more answers"
        for name, report in audited.groups.items()
        if not report.knows
    ]
    if audited.known_errors:
        known = audited.known_errors
        parts.append(
            f"known errors ({known['share']:.3f} of the rewards, from the run's own noise): found "
            f"with AUC {known['surprise']:.3f} by surprise, {known['residual']:.3f} by the size of "
            "the residual"
        )
    if show:
        parts += [
            "most surprising rewards:",
            _surprising(audited.answers.slice(0, show).to_pylist()),
        ]

    return "\n".join(parts)


def _surprising(rows: list[dict[str, Any]]) -> str:
    lines = [
        [
            row["group"], f"{row['told']:.3g}", f"{row['expected']:.3g}",
            f"{row['probability']:.3f}", _cell(row["wrong"]), _short(row["prompt"]),
            _short(row["answer"]),
        ]
        for row in rows
    ]  # fmt: skip
    headers = ["group", "told", "expected", "probability", "label wrong", "prompt", "answer"]
    return tabulate(lines, headers, disable_numparse=True)


def to_plain(audited: Audit) -> dict[str, Any]:
    """What JSON can hold of it."""
    groups = {
        name: dataclasses.asdict(report) | {"knows": report.knows}
        for name, report in audited.groups.items()
    }
    return {"by": audited.by, "groups": groups, "known_errors": audited.known_errors}


def to_json(audited: Audit) -> str:
    return (audited.run / "audit.json").read_text(encoding="utf-8").rstrip()


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        middle, low, high = value
        if not np.isfinite(middle):
            return "-"
        inner = f" [{low:.3f}, {high:.3f}]" if np.isfinite(low) else ""
        return f"{middle:.3f}{inner}"
    if value is None or isinstance(value, int):
        return "-" if value is None else str(value)
    return f"{value:.3f}" if np.isfinite(value) else "-"


def _short(text: str) -> str:
    line = "".join(c if c.isprintable() else " " for c in text)
    return textwrap.shorten(line, 40, placeholder="...")
