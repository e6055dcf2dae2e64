"""What a critic predicts along a few answers, beside what follows when each of their states is
played on many times: the only way to know the law of returns that it should have predicted."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dfpo.config import Config, ConfigError
from dfpo.config.draws import Stream, uniforms
from dfpo.config.noise import Noise
from dfpo.method.targets import compute_targets
from dfpo.rollout.collect import Rollout, collect, last_tokens, noisy_rewards
from dfpo.rollout.policy import continue_from, decode
from dfpo.run.setup import Setup
from dfpo.tasks.source import Row, domain_of

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


@dataclass(frozen=True)
class Played:
    """What a policy does, whatever critic looks on: some answers, and returns of plays from the
    state before each of their tokens."""

    config: Config
    rollout: Rollout
    clean: Tensor  # [A, T, M], 0 off the answers
    noisy: Tensor  # [A, T, M]


@torch.no_grad()
def play(setup: Setup, answers: int, plays: int) -> Played:
    """Samples ``answers`` answers per domain to held-out prompts, and plays on from each of their
    states ``plays`` times with the same policy. The draws depend on ``eval.seed`` alone, and the
    answers not on the noise."""
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
    # Without noise, which would leave out answers whose label it takes away.
    rollout = collect(
        setup.policy, setup.first_policy, setup.tokenizer, rows, setup.reward, Noise(), config,
        UNREACHED,
    )  # fmt: skip
    if not rollout.rows:
        raise ConfigError(f"reward: scores none of {len(rows)} answers, must score one to probe")
    return Played(config, rollout, *_play_on(setup, rollout, config, plays))


def plays_of(setup: Setup) -> str:
    """Equal for runs that ``play`` would play alike: policy, prompts, rewards, noise and draws."""
    config = setup.config
    what = [
        config.model, config.task, config.data, config.eval_data, config.reward,
        config.reward_weights, config.noise, config.rollout, config.eval,
        config.critic.return_low, config.critic.return_high,
    ]  # fmt: skip
    digest = hashlib.sha256(repr(what).encode())
    for weight in setup.policy.state_dict().values():
        digest.update(weight.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def probe(setup: Setup, played: Played) -> Probe:
    """What the run's critic, which it must have, predicts along the answers."""
    config, rollout, clean, noisy = (getattr(played, f.name) for f in dataclasses.fields(played))
    generator = torch.Generator(setup.policy.device).manual_seed(config.seed)
    estimate = setup.critic.estimate(rollout.samples, generator)
    mask, ends = rollout.samples.mask, rollout.clean_rewards.view(-1, 1, 1)
    ends = ends.expand(-1, 1, clean.shape[-1])
    after = torch.cat([clean[:, 1:], ends], 1)
    after = torch.where(last_tokens(mask).unsqueeze(-1), ends, after)
    # The critic's own settings make its advantages.
    own = dataclasses.replace(setup.config, seed=config.seed)
    advantages = [
        compute_targets(draw, estimate, own, UNREACHED).raw_advantages[mask]
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
