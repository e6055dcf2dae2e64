"""Prompts + policy + reward -> Rollout."""

from __future__ import annotations

import torch
from torch import Tensor

from dfpo.config import Config
from dfpo.config.draws import Draws, Stream
from dfpo.config.noise import Noise
from dfpo.config.types import Answers, LeftOut, Rollout, Row, Samples
from dfpo.rewards.functions import Reward
from dfpo.rewards.noise import NoiseInputs, corrupt, kind_id, prompt_id, prompt_text
from dfpo.rollout.logprobs import use_liger
from dfpo.rollout.play import play
from dfpo.rollout.policy import logprobs_by_parts
from dfpo.rollout.sampler import Sampler
from dfpo.rollout.tokens import decode
from dfpo.rollout.votes import agreement, cast_votes
from dfpo.tasks.source import column_of, domain_of


@torch.no_grad()
def collect(
    sampler: Sampler,
    first: Sampler,
    rows: list[Row],
    *,
    reward: Reward,
    noise: Noise,
    config: Config,
    step: int,
    update_looks: bool = False,
) -> Rollout:
    """Samples ``config.rollout.samples`` answers to each row, scores them, and keeps those that
    have a reward after noise. ``first`` is the policy before training, the reference of KL.

    With ``update_looks`` the policy's own log-probabilities are left to its update, wherever that
    sees them anyway: ``dfpo.config.rules.is_learned_at_once``.
    """
    samples, answers = sample(sampler, rows, config, step)
    device, first_id = sampler.policy.device, step * len(answers)

    scored = reward(answers.rows, answers.texts, answers.token_ids, step=step)
    noisy = noisy_rewards(
        scored.values.to(device), answers,
        noise=noise, reward=reward, first=first, config=config, step=step,
    )  # fmt: skip
    before_noise = scored.values
    scored = scored.without(noisy.isnan().cpu())
    groups = (answers.sample_ids - first_id) // config.rollout.samples

    left_out = None
    known = scored.values.isfinite()
    if not known.all():
        kept, gone = known.nonzero().squeeze(-1), (~known).nonzero().squeeze(-1)
        left_out = LeftOut(
            answers=answers.select(gone),
            truncated=samples.truncated[gone.to(device)],
            groups=groups[gone.to(device)],
            clean_rewards=before_noise[gone],
        )
        answers, samples = answers.select(kept), samples.part(kept.tolist())
        groups = groups[kept.to(device)]

    # Without a single answer there is nothing for the models to look at.
    nothing = torch.zeros(samples.mask.shape, device=device)
    drawn = reference = {"logprobs": nothing, "entropy": nothing}
    if len(answers):
        settings = config.rollout.temperature, config.micro_tokens or 0
        head = sampler.policy.get_output_embeddings()
        # Another distribution's draws are weighed before the update.
        if update_looks and samples.logprobs is None and not use_liger(device, head):
            drawn = {"logprobs": None, "entropy": None}
        else:
            drawn = logprobs_by_parts(sampler.policy, samples, *settings)
        reference = logprobs_by_parts(first.policy, samples, *settings, entropy=False)

    clean = scored.values[scored.values.isfinite()].to(device)
    return Rollout(
        scored=scored,
        answers=answers,
        samples=samples,
        groups=groups,
        clean_rewards=clean,
        # The very same tensor where there is no noise, by which others know.
        rewards=noisy[noisy.isfinite()] if noise else clean,
        old_logprobs=drawn["logprobs"],
        ref_logprobs=reference["logprobs"],
        entropy=drawn["entropy"],
        left_out=left_out,
    )


def sample(sampler: Sampler, rows: list[Row], config: Config, step: int) -> tuple[Samples, Answers]:
    """``config.rollout.samples`` answers to each row, drawn as a function of (seed, step)."""
    settings = config.rollout
    rows = [row for row in rows for _ in range(settings.samples)]
    first = step * len(rows)
    sample_ids = torch.arange(first, first + len(rows), device=sampler.policy.device)

    samples, rows = play(
        sampler, rows, settings.max_new_tokens,
        draws=Draws(config.seed, Stream.SAMPLING, step, sample_ids),
        temperature=settings.temperature,
    )  # fmt: skip

    texts, token_ids = decode(sampler.tokenizer, samples)
    return samples, Answers(rows=rows, texts=texts, token_ids=token_ids, sample_ids=sample_ids)


def noisy_rewards(
    clean: Tensor,  # [B], NaN where there is none
    answers: Answers,
    *,
    noise: Noise,
    reward: Reward,
    first: Sampler,
    config: Config,
    step: int,
) -> Tensor:  # [B]
    """What training sees of the rewards of some answers, NaN where it sees none."""
    if not noise:
        return clean
    votes = None
    if noise.vote:
        voted = cast_votes(first, answers.rows, reward.extract, noise.vote, config)
        votes = agreement(voted, answers, reward.extract).to(clean.device)

    prompt_ids = [prompt_id(row["prompt"]) for row in answers.rows]
    domains = [domain_of(row) for row in answers.rows]
    kinds = [kind_id(*pair) for pair in zip(domains, answers.texts, strict=True)]
    inputs = NoiseInputs(
        sample_ids=answers.sample_ids,
        prompt_ids=torch.tensor(prompt_ids, device=clean.device),
        lengths=torch.tensor(answers.lengths, device=clean.device),
        domains=domains,
        votes=votes,
        prompt_lengths=torch.tensor(
            [len(prompt_text(row["prompt"])) for row in answers.rows], device=clean.device
        ),
        kinds=torch.tensor(kinds, device=clean.device),
        values=[column_of(row, noise.by) for row in answers.rows],
    )

    return corrupt(
        noise, clean, inputs, seed=config.seed, step=step,
        low=config.reward.low, high=config.reward.high,
    )  # fmt: skip


def last_tokens(mask: Tensor) -> Tensor:  # [B, T] bool -> [B, T] bool
    """The mark of each answer's last token that counts."""
    return (mask.cumsum(-1) == mask.sum(-1, keepdim=True)) & mask
