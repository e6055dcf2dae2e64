"""Answers along which a critic's values are drawn: which are chosen, and where one goes wrong."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dfpo.config import build_config
from dfpo.config.types import Estimate
from dfpo.rewards.spaces import RewardSpace
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy
from dfpo.rollout.sampler import Sampler
from dfpo.run.examples import TRIES, find_examples, predict
from dfpo.tasks import slip_position
from dfpo.tasks.source import evaluation_rows

CONFIG = {"rollout.max_new_tokens": 40, "device": "cpu", "reward.low": 0, "reward.high": 1}


@pytest.fixture(scope="module")
def sampler():
    return Sampler.of(*load_policy(SHIPPED_POLICY))


@pytest.fixture(scope="module")
def prompts():
    return evaluation_rows(0, 3)["math"]["id"]


class Reward:
    """Tells of the answers to each prompt in turn what ``batches`` says, and keeps the texts."""

    def __init__(self, *batches):
        self.batches, self.texts = list(batches), []

    def __call__(self, rows, texts, token_ids):
        self.texts.append(texts)
        return SimpleNamespace(values=torch.tensor(self.batches[len(self.texts) - 1]))


@pytest.fixture(scope="module")
def found(sampler, prompts):
    """All answers to the first prompt are told alike, none of those to the second."""
    nothing = float("nan")
    told = [[1.0] * TRIES, [nothing] * TRIES, [nothing, 0.5, 0.75, 0.25] + [0.5] * (TRIES - 4)]
    reward = Reward(*told)
    held_out = {"math": {"id": prompts, "ood": []}}
    return *find_examples(sampler, held_out, reward, build_config(CONFIG)), reward


def test_the_first_prompt_that_is_answered_both_ways(found, prompts):
    example, reward = found
    assert example.row == prompts[2] and len(reward.texts) == 3
    # The third answer is the best, the fourth the worst.
    right, wrong = reward.texts[2][2:4]
    said = [" ".join(word for word in words if word != "<eos>") for words in example.words]
    assert said == [right, wrong]
    assert example.slip == slip_position(wrong.split(), prompts[2]["answer"].split())
    assert [len(words) for words in example.words] == example.samples.mask.sum(-1).tolist()


def test_where_no_prompt_is_answered_both_ways_there_is_no_example(sampler, prompts):
    reward = Reward(*[[1.0] * TRIES] * 3)
    assert find_examples(sampler, {"math": {"id": prompts}}, reward, build_config(CONFIG)) == []
    few = build_config(CONFIG | {"eval.examples": 1})
    assert find_examples(sampler, {"math": {"id": prompts}}, Reward([1.0] * TRIES), few) == []


class Critic(torch.nn.Module):
    """Predicts the position, in each of two quantiles."""

    def noise(self, count, generator):
        return None

    def estimate(self, samples, noise):
        place = torch.arange(samples.mask.shape[1]).float().expand(samples.mask.shape)
        return Estimate(torch.stack([place, place + 0.5], -1), torch.zeros(len(place), 2))


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({}, ["right", "wrong"]),
        ({"reward.functions": "a.py:f"}, ["best-rewarded", "worst-rewarded"]),
    ],
)
def test_predictions_are_of_each_answers_own_tokens(found, settings, labels):
    config = build_config(CONFIG | settings)
    fans = predict(Critic(), RewardSpace.of(config), [found[0]], config)
    assert [fan.label for fan in fans] == labels
    for fan, words in zip(fans, found[0].words, strict=True):
        place = np.arange(len(words))
        np.testing.assert_array_equal(fan.quantiles, np.stack([place, place + 0.5], -1))
    assert [fan.slip for fan in fans] == [None, found[0].slip]
