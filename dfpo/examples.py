"""One right and one wrong answer per domain, and what a critic predicts along them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dfpo.config import Config
from dfpo.critic import Critic
from dfpo.data import Row, columns
from dfpo.draws import Stream, uniforms
from dfpo.policy import Samples, decode, generate
from dfpo.rollout import RewardFunction

MOST_PROMPTS = 20
TRIES = 16


class Example(NamedTuple):
    """A right and a wrong answer to one prompt, in this order."""

    domain: str
    row: Row
    samples: Samples
    texts: list[str]


class Fan(NamedTuple):
    """The predicted return before each token of one answer."""

    domain: str
    row: Row
    right: bool
    words: list[str]
    quantiles: np.ndarray  # [T, Q]


def find_examples(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: dict[str, dict[str, list[Row]]],
    reward: RewardFunction,
    config: Config,
) -> list[Example]:
    """For each domain the first held-out prompt that the policy answers both ways, if any."""
    found = []
    for domain, splits in rows.items():
        for number, row in enumerate(splits["id"][:MOST_PROMPTS]):
            example = _right_and_wrong(policy, tokenizer, domain, row, number, reward, config)
            if example is not None:
                found.append(example)
                break
    return found


def predict(critic: Critic, examples: list[Example], config: Config) -> list[Fan]:
    """The critic's present predictions along the examples."""
    fans = []
    for example in examples:
        generator = torch.Generator(example.samples.mask.device).manual_seed(config.seed)
        quantiles = critic.estimate(example.samples, generator).quantiles.float().cpu()
        mask = example.samples.mask.cpu()
        for i, right in enumerate((True, False)):
            words = example.texts[i].split()
            values = quantiles[i][mask[i]].numpy()
            fans.append(Fan(example.domain, example.row, right, words, values))
    return fans


def _right_and_wrong(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    domain: str,
    row: Row,
    number: int,
    reward: RewardFunction,
    config: Config,
) -> Example | None:
    length = config.rollout.max_new_tokens
    ids = torch.arange(number * TRIES, (number + 1) * TRIES, device=policy.device)
    draws = uniforms(config.eval.seed, Stream.EVALUATION, 1, ids, length)
    prompts = [row["prompt"]] * TRIES
    samples = generate(policy, tokenizer, prompts, length, uniforms=draws)
    texts, token_ids = decode(tokenizer, samples)
    scores = reward(
        prompts=prompts, completions=texts, completion_ids=token_ids, **columns([row] * TRIES)
    )
    if max(scores) == min(scores):
        return None
    chosen = [int(np.argmax(scores)), int(np.argmin(scores))]
    return Example(domain, row, Samples(*(x[chosen] for x in samples)), [texts[i] for i in chosen])
