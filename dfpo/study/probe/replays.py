"""What a critic predicts along a few answers, beside what follows when each of their states is
played on many times. That is the only way to know which distribution it should have predicted."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dfpo.config import Config, ConfigError
from dfpo.config.draws import Stream, uniforms
from dfpo.config.noise import Noise
from dfpo.config.types import Answers, Rollout
from dfpo.method.critics import estimate_values
from dfpo.method.targets import compute_targets
from dfpo.rollout.collect import collect, last_tokens, noisy_rewards
from dfpo.rollout.tokens import decode
from dfpo.run.bars import bar
from dfpo.run.setup import Setup
from dfpo.tasks.source import domain_of

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
class Replayed:
    """What a policy does, whatever critic looks on: some answers, and returns of plays from the
    state before each of their tokens."""

    config: Config
    rollout: Rollout
    clean: Tensor  # [A, T, M], 0 off the answers
    noisy: Tensor  # [A, T, M]


@torch.no_grad()
def replay(setup: Setup, answers: int, plays: int) -> Replayed:
    """Samples ``answers`` answers per domain to held-out prompts, and plays on from each of their
    states ``plays`` times with the same policy. The draws depend on ``eval.seed`` alone, and the
    answers not on the noise."""
    if (function := setup.config.rollout.function) is not None:
        raise ConfigError(
            f"rollout: is {function}, must be none to probe a critic: plays go on from the middle "
            "of a turn, where a rollout function cannot begin"
        )
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
        setup.sampler, setup.first, rows,
        reward=setup.reward, noise=Noise(), config=config, step=UNREACHED,
    )  # fmt: skip
    if not len(rollout.answers):
        raise ConfigError(f"reward: scores none of {len(rows)} answers, must score one to probe")

    return Replayed(config, rollout, *_play_on(setup, rollout, config, plays))


def plays_of(setup: Setup) -> str:
    """Equal for runs that ``play`` would play alike: policy, prompts, rewards, noise and draws."""
    config = setup.config
    what = [
        config.model, config.task, config.data, config.eval_data, config.reward.functions,
        config.reward.weights, config.noise, config.rollout, config.eval,
        config.reward.low, config.reward.high,
    ]  # fmt: skip
    digest = hashlib.sha256(repr(what).encode())

    for weight in setup.policy.state_dict().values():
        digest.update(weight.cpu().contiguous().view(torch.uint8).numpy().tobytes())

    return digest.hexdigest()


@torch.no_grad()
def probe(setup: Setup, played: Replayed) -> Probe:
    """What the run's critic, which it must have, predicts along the answers."""
    config, rollout, clean, noisy = (getattr(played, f.name) for f in dataclasses.fields(played))
    generator = torch.Generator(setup.policy.device).manual_seed(config.seed)
    estimate = estimate_values(setup.critic, rollout.samples, generator, setup.config.micro_tokens)
    mask, ends = rollout.samples.mask, rollout.clean_rewards.view(-1, 1, 1)
    ends = ends.expand(-1, 1, clean.shape[-1])
    after = torch.cat([clean[:, 1:], ends], 1)
    after = torch.where(last_tokens(mask).unsqueeze(-1), ends, after)
    # The critic's own settings make its advantages.
    own = dataclasses.replace(setup.config, seed=config.seed)
    advantages = [
        compute_targets(setup.space.mapped(draw), estimate, own, UNREACHED).raw_advantages[mask]
        for draw in _noise_draws(setup, rollout, config)
    ]
    shown = setup.space.readout(estimate, rollout.answers.rows)
    ids = rollout.answers.token_ids

    return Probe(
        *(x[mask].float().cpu().numpy() for x in (shown.quantiles, clean, noisy, after)),
        torch.stack(advantages).float().cpu().numpy(),
        mask.nonzero()[:, 0].cpu().numpy(),
        tuple(domain_of(row) for row in rollout.answers.rows),
        tuple(tuple(setup.tokenizer.decode([t]).strip() for t in row) for row in ids),
        rollout.clean_rewards.cpu().numpy(),
    )


@dataclass(frozen=True)
class _Start:
    """What plays start from: the tokens of each prompt and of its answer."""

    rollout: Rollout
    config: Config
    prompts: list[list[int]]

    @property
    def tokens(self) -> list[list[int]]:
        return self.rollout.answers.token_ids


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

    begun = _Start(rollout, config, prompts)
    clean, noisy = (torch.zeros(count, longest, plays, device=samples.mask.device) for _ in "cn")

    # All states of one position share the number of tokens that are left to them.
    for t in bar(range(max(rollout.answers.lengths)), desc="play on", unit="token", leave=False):
        states = [i for i in range(count) if len(begun.tokens[i]) > t]
        repeated = [i for i in states for _ in range(plays)]
        parts = [
            _returns(setup, begun, repeated[first : first + config.eval.batch_size], t, first)
            for first in range(0, len(repeated), config.eval.batch_size)
        ]
        both = torch.stack([torch.cat(part) for part in zip(*parts, strict=True)])
        clean[states, t], noisy[states, t] = both.view(2, len(states), plays)

    return clean, noisy


def _returns(
    setup: Setup, begun: _Start, chunk: list[int], t: int, first: int
) -> tuple[Tensor, Tensor]:  # [B], [B]
    """Clean and noisy rewards of the answers in ``chunk``, each cut before token ``t`` and played
    on; a play that no reward scores counts as the answer's own."""
    config, rollout = begun.config, begun.rollout
    device, left = setup.policy.device, config.rollout.max_new_tokens - t
    ids = torch.arange(first, first + len(chunk), device=device)

    samples = setup.sampler.continue_from(
        [begun.prompts[i] + begun.tokens[i][:t] for i in chunk],
        left, uniforms=uniforms(config.seed, Stream.EVALUATION, 2 + t, ids, left),
        temperature=config.rollout.temperature,
    )  # fmt: skip
    rest = decode(setup.tokenizer, samples)[1]
    token_ids = [begun.tokens[i][:t] + more for i, more in zip(chunk, rest, strict=True)]
    answers = Answers(
        rows=[rollout.answers.rows[i] for i in chunk],
        texts=setup.tokenizer.batch_decode(token_ids, skip_special_tokens=True),
        token_ids=token_ids,
        sample_ids=ids,
    )

    scored = setup.reward(answers.rows, answers.texts, answers.token_ids).values.to(device)
    clean = torch.where(scored.isfinite(), scored, rollout.clean_rewards[chunk])
    return clean, _corrupted(setup, clean, answers, config, 2 * UNREACHED + t)


def _noise_draws(setup: Setup, rollout: Rollout, config: Config) -> list[Rollout]:
    """The rollout with its rewards corrupted anew, several times."""
    count = len(rollout.answers)
    answers = dataclasses.replace(
        rollout.answers, sample_ids=torch.arange(count, device=setup.policy.device)
    )
    drawn = []

    for draw in range(NOISE_DRAWS):
        noisy = _corrupted(setup, rollout.clean_rewards, answers, config, UNREACHED + 1 + draw)
        noisy = torch.where(noisy.isfinite(), noisy, rollout.clean_rewards)
        drawn.append(dataclasses.replace(rollout, rewards=noisy))

    return drawn


def _corrupted(
    setup: Setup, clean: Tensor, answers: Answers, config: Config, step: int
) -> Tensor:  # [B]
    return noisy_rewards(
        clean, answers, noise=setup.noise, reward=setup.reward, first=setup.first,
        config=config, step=step,
    )  # fmt: skip
