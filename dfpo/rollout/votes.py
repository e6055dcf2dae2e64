"""Majority votes of the first policy: labels where nobody knows the right answer.

For each prompt the first policy, before any training, gives `count` answers; the final answer that
most of them reach stands for the truth. Its errors are systematic: they are the policy's own.
Source: Zuo et al. 2025, "TTRL: Test-Time Reinforcement Learning", arXiv 2504.16084.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from dfpo.config import Config
from dfpo.config.draws import Stream, uniforms
from dfpo.config.types import Answers, Row
from dfpo.rewards.noise import prompt_id
from dfpo.rollout.sampler import Sampler
from dfpo.rollout.tokens import decode
from dfpo.tasks.source import domain_of

Extract = Callable[[str, str], str | None]  # (completion, domain) -> final answer


def majority(answers: list[str | None]) -> str | None:
    """The most frequent final answer, of equals the first; None where there is none at all."""
    ranked = Counter(answer for answer in answers if answer is not None).most_common(1)
    return ranked[0][0] if ranked else None


@torch.no_grad()
def cast_votes(
    first: Sampler,
    rows: list[Row],
    extract: Extract,
    count: int,
    config: Config,
) -> list[str | None]:
    """The majority answer to each row, of `count` sampled ones; rows may repeat.

    The draws are a function of (seed, prompt), so arms and resumed runs share the votes.
    """
    unique = {prompt_id(row["prompt"]): row for row in rows}
    ids = torch.tensor(list(unique), device=first.policy.device)
    length, size = config.rollout.max_new_tokens, config.eval.batch_size
    draws = torch.stack(
        [uniforms(config.seed, Stream.VOTE, vote, ids, length) for vote in range(count)], dim=1
    ).flatten(0, 1)
    asked = [row for row in unique.values() for _ in range(count)]
    finals: list[str | None] = []

    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        samples = first.answer(
            [row["prompt"] for row in part], length,
            uniforms=draws[start : start + size], temperature=config.rollout.temperature,
        )  # fmt: skip
        texts, _ = decode(first.tokenizer, samples)
        finals += [extract(text, domain_of(row)) for text, row in zip(texts, part, strict=True)]

    votes = {key: majority(finals[i * count : (i + 1) * count]) for i, key in enumerate(unique)}
    return [votes[prompt_id(row["prompt"])] for row in rows]


def agreement(votes: list[str | None], answers: Answers, extract: Extract) -> Tensor:  # [B]
    """1 where an answer is its prompt's vote, 0 where it is not, NaN where there is no vote."""
    same = [
        float("nan") if vote is None else float(extract(text, domain_of(row)) == vote)
        for vote, row, text in zip(votes, answers.rows, answers.texts, strict=True)
    ]
    return torch.tensor(same)
