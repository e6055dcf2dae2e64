"""What a rollout holds."""

import json

import pytest
import torch
from tiny_models import FAMILIES, make_model

from dfpo.config import build_config
from dfpo.config.noise import parse_noise
from dfpo.rewards.functions import Reward
from dfpo.rollout.collect import collect
from dfpo.rollout.policy import load_policy
from dfpo.rollout.sampler import Sampler
from dfpo.run.defaults import complete

REWARD = """
def vowels(prompts, completions, completion_ids, target, **columns):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(x in "aeiou" for x in text) / len(ids) for text, ids in zip(texts, completion_ids)]

def sparse(completion_ids, **columns):
    return [None if ids[0] % 2 else float(ids[0] % 4) for ids in completion_ids]

def late_nan(completions, state=[], **columns):
    state.append(1)
    return [float("nan") if len(state) > 1 else 0.5] * len(completions)

def late_raise(completions, state=[], **columns):
    state.append(1)
    if len(state) > 1:
        raise ValueError("the judge is away")
    return [0.5] * len(completions)

def raises(**columns):
    raise KeyError("gold")

def short(completions, **columns):
    return [1.0]

def text(completions, **columns):
    return ["good"] * len(completions)

def nan(completions, **columns):
    return [float("nan")] * len(completions)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Prompts, chats, rewards and one model of each family."""
    folder = tmp_path_factory.mktemp("files")
    texts = [{"prompt": f"Count {'o' * i}: ", "target": i} for i in range(1, 7)]
    chats = [t | {"prompt": [{"role": "user", "content": t["prompt"]}]} for t in texts]
    for name, rows in (("texts", texts), ("chats", chats)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "reward.py").write_text(REWARD)
    for family in FAMILIES:
        make_model(folder / family, family)
    return folder


def test_unscored_answers_are_left_out_of_training(files):
    """The rollout holds the scored answers alone, each as it is when all are scored."""
    policy, tokenizer = load_policy(files / "llama")
    config = build_config({"rollout.max_new_tokens": 8, "rollout.samples": 3})
    config = complete(config, policy, torch.tensor([0.0, 1.0]))
    rows = [{"prompt": "a"}, {"prompt": "bc"}]

    def roll(function):
        reward = Reward(("f",), (function,), (1.0,))
        sampler = Sampler.of(policy, tokenizer)
        return collect(
            sampler,
            sampler,
            rows,
            reward=reward,
            noise=parse_noise("flip=0.5"),
            config=config,
            step=4,
        )

    whole = roll(lambda **_: [0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    part = roll(lambda completions, **_: [0.0, None, 0.0, 1.0, None, 1.0][: len(completions)])
    kept = [0, 2, 3, 5]
    assert part.scored.unscored == 2 and len(part.answers) == 4
    assert [row["prompt"] for row in part.answers.rows] == ["a", "a", "bc", "bc"]
    assert part.answers.texts == [whole.answers.texts[i] for i in kept]
    assert part.answers.sample_ids.tolist() == [24, 26, 27, 29]  # 4 steps of 6 answers before
    for name in ("rewards", "clean_rewards", "old_logprobs", "entropy"):
        torch.testing.assert_close(
            getattr(part, name), getattr(whole, name)[kept], atol=1e-6, rtol=1e-5
        )
