"""Prompts + policy + reward -> Rollout."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dfpo.config import Config
from dfpo.config.draws import Stream, uniforms
from dfpo.config.noise import Noise
from dfpo.rewards.functions import Reward, Scored
from dfpo.rewards.noise import Answers, corrupt, prompt_id
from dfpo.rollout.policy import Samples, decode, generate, token_logprobs
from dfpo.rollout.votes import agreement, cast_votes
from dfpo.tasks.source import Row, domain_of


@dataclass(frozen=True)
class Rollout:
    """One step's answers that have a reward, and what is known of them before any value is
    estimated. Answers without one are left out; ``scored`` counts them."""

    scored: Scored  # of all answers
    rows: list[Row]  # B rows, a prompt repeated for each of its scored samples
    completions: list[str]
    lengths: list[int]  # tokens of each answer, as the host knows them
    samples: Samples
    sample_ids: Tensor  # [B] int64, unique over the run
    groups: Tensor  # [B] int64, which of the step's prompts is answered
    clean_rewards: Tensor  # [B]
    rewards: Tensor  # [B], what training sees
    old_logprobs: Tensor  # [B, T]
    ref_logprobs: Tensor  # [B, T]
    entropy: Tensor  # [B, T]


@torch.no_grad()
def collect(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    reward: Reward,
    noise: Noise,
    config: Config,
    step: int,
) -> Rollout:
    """Samples ``config.rollout.samples`` answers to each row and scores them."""
    settings = config.rollout
    rows = [row for row in rows for _ in range(settings.samples)]
    first, prompts = step * len(rows), [row["prompt"] for row in rows]
    sample_ids = torch.arange(first, first + len(rows), device=policy.device)
    draws = uniforms(config.seed, Stream.SAMPLING, step, sample_ids, settings.max_new_tokens)
    samples = generate(
        policy, tokenizer, prompts, settings.max_new_tokens,
        uniforms=draws, temperature=settings.temperature,
    )  # fmt: skip
    completions, ids = decode(tokenizer, samples)
    scored = reward(rows, completions, ids)
    noisy = noisy_rewards(
        noise, scored.values.to(policy.device), rows, completions, samples.mask.sum(-1),
        sample_ids, reference, tokenizer, reward, config, step,
    )  # fmt: skip
    scored = scored.without(noisy.isnan().cpu())
    noisy = noisy[noisy.isfinite()]
    kept = scored.values.isfinite().nonzero().squeeze(-1)
    if len(kept) < len(rows):
        rows, completions, ids = ([x[i] for i in kept] for x in (rows, completions, ids))
        kept = kept.to(policy.device)
        samples, sample_ids = Samples(*(x[kept] for x in samples)), sample_ids[kept]
    lengths = [len(answer) for answer in ids]
    groups = (sample_ids - first) // settings.samples
    clean = scored.values[scored.values.isfinite()].to(policy.device)
    if not rows:
        empty = torch.zeros(samples.mask.shape, device=policy.device)
        return Rollout(
            scored, rows, completions, lengths, samples, sample_ids, groups, clean, noisy,
            empty, empty, empty,
        )  # fmt: skip
    old_logprobs, entropy = token_logprobs(policy, samples, settings.temperature)
    ref_logprobs, _ = token_logprobs(reference, samples, settings.temperature, entropy=False)
    return Rollout(
        scored, rows, completions, lengths, samples, sample_ids, groups, clean, noisy,
        old_logprobs, ref_logprobs, entropy,
    )  # fmt: skip


def noisy_rewards(
    noise: Noise,
    clean: Tensor,  # [B], NaN where there is none
    rows: list[Row],
    completions: list[str],
    lengths: Tensor,  # [B], tokens
    sample_ids: Tensor,  # [B]
    reference: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: Reward,
    config: Config,
    step: int,
) -> Tensor:  # [B]
    """What training sees of the rewards of some answers, NaN where it sees none."""
    answers = Answers(
        sample_ids,
        torch.tensor([prompt_id(row["prompt"]) for row in rows], device=clean.device),
        lengths,
        [domain_of(row) for row in rows],
    )
    if noise.vote:
        votes = cast_votes(reference, tokenizer, rows, reward.extract, noise.vote, config)
        same = agreement(votes, rows, completions, reward.extract)
        answers = replace(answers, votes=same.to(clean.device))
    return corrupt(
        noise, clean, answers, seed=config.seed, step=step,
        low=config.critic.return_low, high=config.critic.return_high,
    )  # fmt: skip


def last_tokens(mask: Tensor) -> Tensor:  # [B, T] bool -> [B, T] bool
    """The mark of each answer's last token."""
    position = torch.arange(mask.shape[1], device=mask.device)
    return (position == mask.sum(-1, keepdim=True) - 1) & mask
