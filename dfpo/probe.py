"""What a critic predicts along a few answers, beside what follows when each of their states is
played on many times: the only way to know the law of returns that it should have predicted."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dfpo.config import Config, ConfigError
from dfpo.data import Row, domain_of
from dfpo.draws import Stream, uniforms
from dfpo.noise import Noise
from dfpo.policy import continue_from, decode
from dfpo.prepare import Setup
from dfpo.rollout import Rollout, collect, last_tokens, noisy_rewards
from dfpo.targets import compute_targets

NOISE_DRAWS = 16  # of each answer's reward, over which advantages are averaged
# Steps from here on are never trained, so that draws named by them are not training's.
UNREACHED = 2**20


@dataclass(frozen=True)
class Probe:
    """N states, one before each token of some answers, in order; M plays from each."""

    quantiles: np.ndarray  # [N, Q], predicted
    clean: np.ndarray  # [N, M], returns of the plays
    noisy: np.ndarray  # [N, M], the same as training would see them; NaN where it would see none
    after: np.ndarray  # [N, M], clean returns from the state after the token
    advantages: np.ndarray  # [R, N], of the token, from R draws of the answer's noisy reward
    answer: np.ndarray  # [N], which answer
    domains: tuple[str, ...]  # of each answer
    words: tuple[tuple[str, ...], ...]  # of each answer, one a token
    rewards: np.ndarray  # clean, of each answer


@torch.no_grad()
def probe(setup: Setup, answers: int, plays: int) -> Probe:
    """Samples ``answers`` answers per domain to held-out prompts, and plays on from each of their
    states ``plays`` times with the same policy. The run must have a critic. The draws depend on
    ``eval.seed`` alone, and the answers not on the noise."""
    config = dataclasses.replace(
        setup.config,
        seed=setup.config.eval.seed,
        rollout=dataclasses.replace(setup.config.rollout, samples=1),
    )
    rows = [
        row
        for splits in setup.source.held_out.values()
        for row in next(iter(splits.values()))[:answers]
    ]
    if not rows:
        raise ConfigError("eval.prompts: is 0, must be at least 1 to probe a critic")
    step = UNREACHED
    # Without noise, which would leave out answers whose label it takes away.
    rollout = collect(
        setup.policy, setup.first_policy, setup.tokenizer, rows, setup.reward, Noise(), config, step
    )
    if not rollout.rows:
        raise ConfigError(f"reward: scores none of {len(rows)} answers, must score one to probe")
    generator = torch.Generator(setup.policy.device).manual_seed(config.seed)
    estimate = setup.critic.estimate(rollout.samples, generator)
    mask = rollout.samples.mask
    clean, noisy = _play_on(setup, rollout, config, plays)
    ends = rollout.clean_rewards.view(-1, 1, 1).expand(-1, 1, plays)
    after = torch.cat([clean[:, 1:], ends], 1)
    after = torch.where(last_tokens(mask).unsqueeze(-1), ends, after)
    advantages = [
        compute_targets(draw, estimate, config, step).raw_advantages[mask]
        for draw in _noise_draws(setup, rollout, config)
    ]
    ids = decode(setup.tokenizer, rollout.samples)[1]
    return Probe(
        *(x[mask].float().cpu().numpy() for x in (estimate.quantiles, clean, noisy, after)),
        torch.stack(advantages).float().cpu().numpy(),
        mask.nonzero()[:, 0].cpu().numpy(),
        tuple(domain_of(row) for row in rollout.rows),
        tuple(tuple(setup.tokenizer.decode([t]).strip() for t in row) for row in ids),
        rollout.clean_rewards.cpu().numpy(),
    )


def _play_on(
    setup: Setup, rollout: Rollout, config: Config, plays: int
) -> tuple[Tensor, Tensor]:  # [A, T, M] each
    """Clean and noisy returns of plays from the state before each token; 0 off the answers."""
    samples = rollout.samples
    count, longest = samples.mask.shape
    prompts = [
        row[kept.bool()].tolist()
        for row, kept in zip(
            samples.input_ids[:, :-longest], samples.attention_mask[:, :-longest], strict=True
        )
    ]
    tokens = decode(setup.tokenizer, samples)[1]
    clean, noisy = (torch.zeros(count, longest, plays, device=samples.mask.device) for _ in "cn")
    # All states of one position share the number of tokens that are left to them.
    for t in tqdm(range(max(map(len, tokens))), desc="play on", unit="token", leave=False):
        states = [i for i in range(count) if len(tokens[i]) > t]
        repeated = [i for i in states for _ in range(plays)]
        found = []
        for start in range(0, len(repeated), config.eval.batch_size):
            chunk = repeated[start : start + config.eval.batch_size]
            found.append(_returns(setup, rollout, config, prompts, tokens, chunk, t, start))
        both = torch.stack([torch.cat(part) for part in zip(*found, strict=True)])
        clean[states, t], noisy[states, t] = both.view(2, len(states), plays)
    return clean, noisy


def _returns(
    setup: Setup,
    rollout: Rollout,
    config: Config,
    prompts: list[list[int]],
    tokens: list[list[int]],
    chunk: list[int],
    t: int,
    start: int,
) -> tuple[Tensor, Tensor]:  # [B], [B]
    """Clean and noisy rewards of the answers in ``chunk``, each cut before token ``t`` and played
    on; a play that no reward scores counts as the answer's own."""
    device, longest = setup.policy.device, config.rollout.max_new_tokens
    ids = torch.arange(start, start + len(chunk), device=device)
    samples = continue_from(
        setup.policy, setup.tokenizer, [prompts[i] + tokens[i][:t] for i in chunk], longest - t,
        uniforms=uniforms(config.seed, Stream.EVALUATION, 2 + t, ids, longest - t),
        temperature=config.rollout.temperature,
    )  # fmt: skip
    answers = [
        tokens[i][:t] + rest
        for i, rest in zip(chunk, decode(setup.tokenizer, samples)[1], strict=True)
    ]
    texts = setup.tokenizer.batch_decode(answers, skip_special_tokens=True)
    rows: list[Row] = [rollout.rows[i] for i in chunk]
    scored = setup.reward(rows, texts, answers).values.to(device)
    clean = torch.where(scored.isfinite(), scored, rollout.clean_rewards[chunk])
    lengths = torch.tensor([len(answer) for answer in answers], device=device)
    noisy = noisy_rewards(
        setup.noise, clean, rows, texts, lengths, ids, setup.first_policy, setup.tokenizer,
        setup.reward, config, 2 * UNREACHED + t,
    )  # fmt: skip
    return clean, noisy


def _noise_draws(setup: Setup, rollout: Rollout, config: Config) -> list[Rollout]:
    """The rollout with its rewards corrupted anew, several times."""
    ids = torch.arange(len(rollout.rows), device=setup.policy.device)
    found = []
    for draw in range(NOISE_DRAWS):
        noisy = noisy_rewards(
            setup.noise, rollout.clean_rewards, rollout.rows, rollout.completions,
            rollout.samples.mask.sum(-1), ids, setup.first_policy, setup.tokenizer, setup.reward,
            config, UNREACHED + 1 + draw,
        )  # fmt: skip
        noisy = torch.where(noisy.isfinite(), noisy, rollout.clean_rewards)
        found.append(dataclasses.replace(rollout, rewards=noisy))
    return found
