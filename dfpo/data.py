"""Prompts and their columns, as the rollout and the reward function see them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dfpo.tasks import DOMAINS, SPLITS, problem

Row = dict[str, Any]  # "prompt" and the columns that the reward function gets


def training_rows(seed: int, step: int, count: int) -> list[Row]:
    """The prompts of one step: in-domain ranges, the domains in turn."""
    names = list(DOMAINS)
    indices = range(step * count, (step + 1) * count)
    return [asdict(problem(seed, "train", names[i % len(names)], "id", i)) for i in indices]


def evaluation_rows(seed: int, count: int) -> dict[str, dict[str, list[Row]]]:
    """Held-out prompts: domain -> split -> ``count`` rows."""
    return {
        domain: {
            split: [asdict(problem(seed, "eval", domain, split, i)) for i in range(count)]
            for split in SPLITS
        }
        for domain in DOMAINS
    }


def columns(rows: list[Row]) -> dict[str, list]:
    """Rows as columns, without the prompt: the extra keywords of a reward function."""
    return {key: [row[key] for row in rows] for key in rows[0] if key != "prompt"}
