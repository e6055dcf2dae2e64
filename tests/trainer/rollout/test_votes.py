"""Majority votes of the first policy, and missing labels, as the rollout meets them."""

import dataclasses

import pytest
import torch

from dfpo.config import ConfigError, build_config
from dfpo.config.noise import parse_noise
from dfpo.config.types import Answers
from dfpo.rewards.functions import Reward
from dfpo.rollout.collect import collect
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy
from dfpo.rollout.sampler import Sampler
from dfpo.rollout.votes import agreement, cast_votes, majority
from dfpo.run import train as training
from dfpo.run.setup import set_up
from dfpo.tasks import SUITES
from dfpo.tasks.source import training_rows

SUITE = SUITES["suite"]
CONFIG = build_config(
    {
        "rollout.prompts": 4, "rollout.samples": 4, "rollout.max_new_tokens": 48,
        "reward.low": 0.0, "reward.high": 1.0,
    }
)  # fmt: skip
VERIFIER = Reward(("verifier",), (SUITE.reward,), (1.0,), SUITE.extract)


@pytest.fixture(scope="module")
def shipped():
    return load_policy(SHIPPED_POLICY)


def rollout(shipped, text, config=CONFIG, step=0):
    policy, tokenizer = shipped
    rows = training_rows(config.seed, step, 4)
    sampler = Sampler.of(policy, tokenizer)
    return collect(
        sampler,
        sampler,
        rows,
        reward=VERIFIER,
        noise=parse_noise(text),
        config=config,
        step=step,
    )


def test_majority_by_hand():
    assert majority(["7", "8", None, "8"]) == "8"
    assert majority(["7", "8", "8", "7"]) == "7", "of equals the first"
    assert majority([None, None, "7"]) == "7"
    assert majority([None, None]) is None


def test_agreement_by_hand():
    rows = [{"prompt": "p", "domain": "math"}] * 3
    votes = ["0 7", "0 7", None]
    answers = Answers(
        rows=rows,
        texts=["; so 0 7", "; so 0 8", "; so 0 7"],
        token_ids=[],
        sample_ids=torch.arange(3),
    )
    found = agreement(votes, answers, SUITE.extract)
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, torch.nan]), equal_nan=True)


@pytest.mark.parametrize(
    ("domain", "completion", "expected"),
    [
        ("math", "units 1 + 2 + 0 = 0 3 ; so 0 3", "0 3"),
        ("math", "so 0 3", None),
        ("math", "units ; so", None),
        ("science", "f = 1 ; f = 2 newtons", "f = 2 newtons"),
        ("science", "f = 2 newtons", None),
        ("dialogue", "#1 day set friday so day friday", "day friday"),
        ("dialogue", "#1 day set friday", None),
    ],
)
def test_final_answers_by_hand(domain, completion, expected):
    for suite in SUITES.values():
        assert suite.extract(completion, domain) == expected


def test_votes_are_a_function_of_seed_and_prompt(shipped):
    policy, tokenizer = shipped
    rows = training_rows(0, 0, 3)
    votes = cast_votes(Sampler.of(policy, tokenizer), rows, SUITE.extract, 3, CONFIG)
    assert all(votes)
    repeated = [rows[2], rows[0], rows[2]]
    again = cast_votes(Sampler.of(policy, tokenizer), repeated, SUITE.extract, 3, CONFIG)
    assert again == [votes[2], votes[0], votes[2]]
    small = dataclasses.replace(CONFIG, eval=dataclasses.replace(CONFIG.eval, batch_size=3))
    assert cast_votes(Sampler.of(policy, tokenizer), rows, SUITE.extract, 3, small) == votes
    other = dataclasses.replace(CONFIG, seed=1)
    many = training_rows(0, 0, 12)
    first = cast_votes(Sampler.of(policy, tokenizer), many, SUITE.extract, 1, CONFIG)
    assert first != cast_votes(Sampler.of(policy, tokenizer), many, SUITE.extract, 1, other)


def test_rewards_are_agreement_with_the_vote(shipped):
    policy, tokenizer = shipped
    noisy = rollout(shipped, "vote=9")
    clean = rollout(shipped, "none")
    assert noisy.answers.texts == clean.answers.texts
    assert torch.equal(noisy.clean_rewards, clean.clean_rewards), "the truth stays in the log"
    votes = cast_votes(Sampler.of(policy, tokenizer), noisy.answers.rows, SUITE.extract, 9, CONFIG)
    told = zip(noisy.answers.texts, noisy.answers.rows, votes, strict=True)
    expected = [float(SUITE.extract(text, row["domain"]) == vote) for text, row, vote in told]
    assert noisy.rewards.tolist() == expected


def test_missing_labels_are_left_out_and_counted(shipped):
    clean, noisy = rollout(shipped, "none"), rollout(shipped, "missing=0.5")
    kept = torch.isin(clean.answers.sample_ids, noisy.answers.sample_ids)
    assert 0 < kept.sum() < 16
    assert noisy.scored.unscored == 16 - kept.sum()
    assert torch.equal(noisy.rewards, clean.rewards[kept])
    assert torch.equal(noisy.clean_rewards, clean.clean_rewards[kept])
    assert (
        noisy.old_logprobs.shape[0]
        == len(noisy.answers.rows)
        == len(noisy.answers.texts)
        == kept.sum()
    )


def test_a_task_without_final_answers_refuses_votes():
    config = build_config({"task": "reasoning_gym:chain_sum", "noise": "vote=4"})
    with pytest.raises(ConfigError, match="votes need a task whose final answers"):
        set_up(config, None)


def test_a_run_with_every_kind_of_noise_stops_nowhere(tmp_path):
    settings = {
        "steps": 2, "runs_dir": str(tmp_path), "rollout.prompts": 3, "rollout.samples": 2,
        "rollout.max_new_tokens": 40, "eval.prompts": 0, "plots": False,
        "critic.warmup_steps": 0,
        "noise": "vote=3,flip=.1,outliers=.1,heavy=.1,missing=.3,per=prompt",
    }  # fmt: skip
    run = training.train(build_config(settings))
    assert (run / "summary.json").is_file()
