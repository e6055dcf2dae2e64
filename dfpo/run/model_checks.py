"""Whether a model is what training takes it for; each is asked once, before a run.

It must be causal: one that reads the tokens it predicts has no log-probabilities of answers. And it
must answer a padded prompt as it answers the prompt alone, since prompts of one batch are padded to
one length: where a recurrent state takes no attention mask, or the cache that is sampled with does
not, log-probabilities are those of the padding too.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from dfpo.config import ConfigError
from dfpo.config.draws import Stream, uniforms
from dfpo.config.types import Samples
from dfpo.rollout.adapters import root_of
from dfpo.rollout.policy import context_length, logprobs_by_parts
from dfpo.rollout.sampler import Sampler

LONG, ANSWER = 24, 16  # tokens
# Nats, shares of probability, spreads of the logits. Rounding makes 1e-5 of them in float32; in
# bfloat16 it may choose another expert for a token.
ALLOWED = {torch.float32: (0.02, 0.01, 1e-3), torch.bfloat16: (1.0, 0.25, 0.1)}


@torch.no_grad()
def check_model(sampler: Sampler, prompt: list[int]) -> None:
    """Answers a prompt of one token beside one of LONG made of the tokens of ``prompt``. Raises
    ConfigError that names the model."""
    policy = sampler.policy
    name = type(root_of(policy)).__name__
    long = min(LONG, context_length(policy, sampler.tokenizer) - ANSWER)
    if long < 2:
        return
    draws = uniforms(0, Stream.SAMPLING, 0, torch.arange(2, device=policy.device), ANSWER)
    try:
        samples = sampler.continue_from(
            [(prompt * long)[:long], prompt[:1]], ANSWER, uniforms=draws
        )
        alone = samples.part([1])  # which has no column of padding
        beside, by_itself = (
            logprobs_by_parts(policy, some, 1.0, 0, entropy=False)["logprobs"]
            for some in (samples, alone)
        )
        ahead = _sees_ahead(sampler, alone)
        missed = _missed(sampler, alone, draws[1])
    # The model's own code may fail in any way on what others take.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConfigError(f"model: {name} cannot answer a padded prompt: {reason}") from error

    nats, share, spreads = ALLOWED[getattr(policy.base_model, "compute_dtype", torch.float32)]
    if not ahead <= spreads:
        raise ConfigError(
            f"model: {name} reads the tokens that it predicts: the last one changes the logits of "
            f"those before it by {ahead:.2g} of their spread, must be a causal language model"
        )
    off = float((beside[1, : alone.lengths[0]] - by_itself[0]).abs().max())
    if not off <= nats:
        raise ConfigError(
            f"model: {name} reads the padding of a prompt: log-probabilities beside a longer "
            f"prompt are {off:.2g} nats off, must be those of the prompt alone"
        )
    if not missed <= share:
        raise ConfigError(
            f"model: {name} reads the padding of a prompt as it samples: beside a longer prompt it "
            f"draws from another distribution than alone, {missed:.2g} of its probability off"
        )


def _logits(sampler: Sampler, samples: Samples) -> Tensor:  # [B, P + T, V]
    return sampler.policy(
        input_ids=samples.input_ids, attention_mask=samples.attention_mask, use_cache=False
    ).logits


def _sees_ahead(sampler: Sampler, alone: Samples) -> float:
    """How much the last token changes the logits before it, in their standard deviations."""
    ids = alone.input_ids.clone()
    ids[:, -1] = torch.where(ids[:, -1] == ids[:, 0], (ids[:, 0] + 1) % 2, ids[:, 0])
    changed = dataclasses.replace(alone, input_ids=ids)
    before, after = (_logits(sampler, some)[:, :-1] for some in (alone, changed))
    return float((before - after).abs().max() / before.float().std().clamp_min(1e-12))


def _missed(sampler: Sampler, alone: Samples, draws: Tensor) -> float:  # [T]
    """How far the draws lie, at most, from the shares of the tokens that they chose in the
    cumulative distribution of the answer alone."""
    logits = _logits(sampler, alone)
    cumulative = logits[0, -alone.mask.shape[1] - 1 : -1].double().softmax(-1).cumsum(-1)
    chosen = alone.tokens[0].unsqueeze(-1)
    upper = cumulative.gather(-1, chosen)[:, 0]
    lower = torch.where(chosen > 0, cumulative.gather(-1, (chosen - 1).clamp_min(0)), 0.0)[:, 0]
    draws = draws[: len(upper)].double()

    return float(torch.maximum(lower - draws, draws - upper).max())
