"""The command on a card: the settings that are not usual, and none else. The card of a real run,
and that its command is the run: test_hub.py."""

import shlex

import pytest

from dfpo.__main__ import build_parsers
from dfpo.config import build_config
from dfpo.run.run_card import command_of, facts, front_matter


def test_the_usual_is_left_out():
    assert command_of(build_config({})) == "dfpo train --algorithm dfpo"
    assert command_of(build_config({"algorithm": "ppo", "name": "a", "threads": 1})) == (
        "dfpo train --algorithm ppo"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"noise": "flip=0.3", "seed": 4, "policy.clip_high": 0.28},
        {"algorithm": "ppo", "critic.heads": 2, "target.bootstrap_on_truncation": True},
        {"data": "my prompts.jsonl", "reward.functions": ["a.py:f", "judge"],
         "reward.weights": [1, 0.5], "critic.linear_mean": False},
    ],
)  # fmt: skip
def test_the_command_is_read_as_the_same_run(settings):
    config = build_config(settings)
    words = shlex.split(command_of(config))
    read = vars(build_parsers("train")[0].parse_args(words[1:]))
    kept = {k: v for k, v in read.items() if k not in ("command", "config", "resume", "dry_run")}
    assert build_config(kept) == config
    assert len(words) > 4


def test_what_hubs_read():
    assert front_matter(build_config({}))["library_name"] == "transformers"
    assert front_matter(build_config({"lora.rank": 4}))["library_name"] == "peft"


def test_facts_by_hand():
    config = build_config(
        {"reward.functions": ["a.py:f", "judge"], "reward.weights": [1, 0.5], "reward.low": -1,
         "reward.high": 2, "data": "rows.jsonl", "noise": "flip=0.3"}
    )  # fmt: skip
    training = {"tokens": 12345, "unscored": 2, "invalid": 0}
    summary = {"training": training, "seconds": 61.4, "after": {"id": 0.5, "ood": 0.25}}
    said = dict(facts(config, summary))
    assert said["training prompts"] == "rows.jsonl"
    assert said["held-out prompts"] == "of the same source: id in domain, ood out of domain"
    assert said["reward"] == "a.py:f, judge, weights 1.0, 0.5, range [-1, 2]"
    assert said["sampled"] == "12,345 tokens, in 61 seconds"
    assert said["answers without a reward"] == "2 unscored, 0 failed"
