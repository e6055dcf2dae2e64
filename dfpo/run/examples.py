"""A right and a wrong answer per domain (or a well and a badly rewarded one), and what a critic
predicts along them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from dfpo.config import Config
from dfpo.config.draws import Draws, Stream
from dfpo.config.types import Row, Samples
from dfpo.method.critics import Critic, estimate_values
from dfpo.rewards.functions import Reward
from dfpo.rewards.spaces import RewardSpace
from dfpo.rollout.play import play
from dfpo.rollout.sampler import Sampler
from dfpo.rollout.tokens import decode
from dfpo.tasks import DOMAINS, slip_position
from dfpo.tasks.source import Held

TRIES = 16


class Example(NamedTuple):
    """A right and a wrong answer to one prompt, in this order."""

    domain: str
    row: Row
    samples: Samples
    words: list[list[str]]  # of each answer, one a token
    slip: int | None  # first token of the wrong answer that is off, where the right one is known


class Fan(NamedTuple):
    """The predicted return before each token of one answer."""

    domain: str
    label: str  # which of the two answers
    words: list[str]
    slip: int | None
    quantiles: np.ndarray  # [T, Q]


def find_examples(
    sampler: Sampler,
    held_out: Held,
    reward: Reward,
    config: Config,
) -> list[Example]:
    """For each domain the first prompt that the policy answers both ways, if any."""
    shown = []
    for domain, splits in held_out.items():
        prompts = next(iter(splits.values()))[: config.eval.examples]
        for number, row in enumerate(prompts):
            example = _right_and_wrong(
                sampler, row, domain=domain, number=number, reward=reward, config=config
            )
            if example is not None:
                shown.append(example)
                break

    return shown


def predict(
    critic: Critic, space: RewardSpace, examples: list[Example], config: Config
) -> list[Fan]:
    """The critic's present predictions along the examples, in units of told rewards."""
    fans = []
    for example in examples:
        generator = torch.Generator(example.samples.mask.device).manual_seed(config.seed)
        estimate = estimate_values(critic, example.samples, generator)
        rows = [example.row] * len(example.words)
        quantiles = space.returns(estimate.quantiles, rows).float().cpu()
        mask = example.samples.mask.cpu()
        verified = _verified(example.domain, config)
        labels = ("right", "wrong") if verified else ("best-rewarded", "worst-rewarded")
        for i, label in enumerate(labels):
            values = quantiles[i][mask[i]].numpy()
            slip = example.slip if i == 1 else None
            fans.append(Fan(example.domain, label, example.words[i], slip, values))

    return fans


def _right_and_wrong(
    sampler: Sampler,
    row: Row,
    *,
    domain: str,
    number: int,
    reward: Reward,
    config: Config,
) -> Example | None:
    length = config.rollout.max_new_tokens
    ids = torch.arange(number * TRIES, (number + 1) * TRIES, device=sampler.policy.device)
    draws = Draws(config.eval.seed, Stream.EVALUATION, 1, ids)
    samples, rows = play(sampler, [row] * TRIES, length, draws=draws)
    texts, token_ids = decode(sampler.tokenizer, samples)
    scores = reward(rows, texts, token_ids).values.numpy()
    if np.isnan(scores).all() or np.nanmax(scores) == np.nanmin(scores):
        return None
    chosen = [int(np.nanargmax(scores)), int(np.nanargmin(scores))]
    words = [[_printable(sampler.tokenizer.decode([t])) for t in token_ids[i]] for i in chosen]
    slip = None
    if _verified(domain, config):
        slip = slip_position(texts[chosen[1]].split(), row["answer"].split())

    return Example(domain, row, samples.select(chosen), words, slip)


def _verified(domain: str, config: Config) -> bool:
    """Whether answers of this domain are right or wrong, beside a canonical one."""
    return config.data is None and not config.reward.functions and domain in DOMAINS


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text.strip())
