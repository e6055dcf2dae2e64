"""Answers of several turns with a tool: what is in them, and what of them is trained on."""

import json
from pathlib import Path

import pytest
import torch
from tiny_models import make_model

import dfpo
from dfpo.config import build_config
from dfpo.config.draws import Draws, Stream
from dfpo.config.noise import Noise
from dfpo.config.types import Counts, Targets
from dfpo.method.critics import build_critic
from dfpo.method.policy_losses import PolicyBatch, clip
from dfpo.method.targets import compute_targets
from dfpo.rewards.functions import Reward
from dfpo.rollout.collect import collect
from dfpo.rollout.play import play
from dfpo.rollout.policy import load_policy
from dfpo.rollout.sampler import Sampler
from dfpo.run.defaults import complete

TOOL = [40, 41, 42]
ROWS = [{"prompt": "one", "hint": "x"}, {"prompt": "three", "hint": "yy"}]
EXAMPLE = Path(__file__).parents[3] / "examples/calculator.py"


def with_tool(prompts, generate, tokenizer, hint):
    """A turn, a tool, and for the second prompt another turn."""
    first = generate(prompts, max_new_tokens=3)
    asked = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    so_far = asked[1] + first[1].token_ids + TOOL
    (second,) = generate([so_far], max_new_tokens=4)
    ids = [first[0].token_ids + TOOL, first[1].token_ids + TOOL + second.token_ids]
    ones = [[1] * len(turn.token_ids) for turn in (*first, second)]
    return {
        "completion_ids": ids,
        "env_mask": [ones[0] + [0] * 3, ones[1] + [0] * 3 + ones[2]],
        "size": [len(text) for text in hint],
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_policy(make_model(tmp_path_factory.mktemp("model"), "llama"))


def draws(count=2, seed=0):
    return Draws(seed, Stream.SAMPLING, 3, torch.arange(6, 6 + count))


def test_answers_are_turns_and_tools(model):
    sampler = Sampler.of(*model, function=with_tool)
    samples, rows = play(sampler, ROWS, 8, draws=draws())
    assert rows == [ROWS[0] | {"size": 1}, ROWS[1] | {"size": 2}]
    assert samples.lengths == [6, 10] and samples.counts == [3, 7]
    assert samples.mask.int().tolist() == [[1, 1, 1] + [0] * 7, [1] * 3 + [0] * 3 + [1] * 4]
    assert samples.tokens[0, 3:6].tolist() == samples.tokens[1, 3:6].tolist() == TOOL
    assert samples.prompt_lengths == [len(model[1](row["prompt"])["input_ids"]) for row in ROWS]

    again, _ = play(sampler, ROWS, 8, draws=draws())
    other, _ = play(sampler, ROWS, 8, draws=draws(seed=1))
    assert torch.equal(again.input_ids, samples.input_ids), "draws are a function of seed and step"
    assert not torch.equal(other.tokens[:, :3], samples.tokens[:, :3])


def test_a_first_turn_is_the_answer_without_a_function(model):
    """One turn of the same limit draws what the engine alone draws."""

    def one_turn(prompts, generate):
        return {"completion_ids": [turn.token_ids for turn in generate(prompts)]}

    plain, _ = play(Sampler.of(*model), ROWS, 8, draws=draws())
    played, _ = play(Sampler.of(*model, function=one_turn), ROWS, 8, draws=draws())
    for name in ("input_ids", "attention_mask", "mask", "truncated"):
        assert torch.equal(getattr(plain, name), getattr(played, name)), name


def rollout_of(model, function, **settings):
    config = build_config(
        {"rollout.samples": 2, "rollout.max_new_tokens": 8, "algorithm": "ppo", **settings}
    )
    config = complete(config, model[0], torch.tensor([0.0, 1.0]))
    reward = Reward(("r",), (lambda size, **_: [s / 2 for s in size],), (1.0,))
    sampler = Sampler.of(*model, function=function)
    rollout = collect(
        sampler, Sampler.of(*model), ROWS[1:], reward=reward, noise=Noise(), config=config, step=0
    )  # fmt: skip
    return rollout, config


def test_masked_tokens_get_no_gradient(model):
    """The logits that predict a tool's tokens, and the critic's states before them."""
    rollout, config = rollout_of(model, with_tool)
    assert rollout.clean_rewards.tolist() == [1.0, 1.0], "the function's column reached the reward"
    mask = rollout.samples.mask
    advantages = torch.where(mask, 1.0, torch.nan)
    batch = PolicyBatch.of(
        rollout, Targets(advantages.nan_to_num(5.0), advantages, advantages), [0, 1],
        Counts.of(rollout.samples.counts),
    )  # fmt: skip
    kept = []

    def watch(head, inputs, logits):
        logits.retain_grad()
        kept.append(logits)

    hook = model[0].get_output_embeddings().register_forward_hook(watch)
    clip(model[0], None, batch, config)[0].backward()
    hook.remove()
    seen = kept[0].grad.abs().sum(-1)[:, -mask.shape[1] - 1 : -1] > 0
    assert torch.equal(seen, mask), "exactly the policy's own tokens have a gradient"

    critic = build_critic(model[0], config)
    states = critic.hidden(rollout.samples).detach().requires_grad_()
    critic.hidden = lambda samples: states
    targets = compute_targets(rollout, critic.estimate(rollout.samples), config, 0)
    torch.nn.init.ones_(critic.head.weight)
    critic.loss(rollout.samples, targets.critic, batch.counts)[0].backward()
    assert torch.equal(states.grad.abs().sum(-1)[:, :-1] > 0, mask)


def test_a_functions_logprobs_become_weights(model):
    """Told probabilities are half the trainer's on each token: ratio 2, cut to 1.5."""

    def told(prompts, generate):
        turns = generate(prompts, max_new_tokens=3)
        ids = [turn.token_ids for turn in turns]
        return {"completion_ids": ids, "logprobs": [[-1.0] * len(row) for row in ids]}

    rollout, config = rollout_of(model, told, **{"policy.importance_clip": 1.5})
    targets = compute_targets(rollout, None, build_config(grpo := {"algorithm": "grpo"}), 0)
    expected = (rollout.old_logprobs + 1.0).exp().clamp_max(2.0)
    torch.testing.assert_close(targets.weights, expected)
    off = build_config(grpo | {"policy.importance_clip": 0.0})
    assert compute_targets(rollout, None, off, 0).weights is None
    own, config = rollout_of(model, None)
    assert own.samples.logprobs is None, "the policy itself drew: no weights, no computation"


def test_from_python_and_from_a_file(tmp_path):
    """The example trains, resumes bit for bit, and is the run of the same function in Python."""
    import runpy

    example = runpy.run_path(str(EXAMPLE))
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i} plus 2"}) + "\n" for i in range(4)))
    common = {
        "steps": 2, "critic": {"warmup_steps": 1}, "eval": {"prompts": 1}, "plots": False,
        "runs_dir": str(tmp_path), "data": str(data),
    }  # fmt: skip
    size = {"prompts": 2, "samples": 2, "max_new_tokens": 8}
    file = dfpo.train(
        reward=f"{EXAMPLE}:reward", rollout={"function": f"{EXAMPLE}:play", **size},
        name="file", **common,
    )  # fmt: skip
    given = dfpo.train(
        reward=example["reward"], rollout={"function": example["play"], **size},
        name="given", **common | {"steps": 1},
    )  # fmt: skip
    with pytest.raises(dfpo.ConfigError, match="rollout: play was a function given in Python"):
        given.resume(reward=example["reward"], steps=2)
    given = given.resume(reward=example["reward"], rollout=example["play"], steps=2)

    def numbers(run):
        lines = (run.directory / "metrics.jsonl").read_text().splitlines()
        steps = map(json.loads, lines)
        return [{k: v for k, v in step.items() if not k.startswith("perf")} for step in steps]

    assert numbers(file) == numbers(given) and len(numbers(file)) == 2
    assert (
        file.evaluate().scores
        == given.evaluate(reward=example["reward"], rollout=example["play"]).scores
    )


def test_wrong_returns_end_a_run_before_it_begins(tmp_path):
    def play(prompts):
        return {"completion_ids": [[5]] * (len(prompts) - 1)}

    with pytest.raises(dfpo.ConfigError, match="completion_ids has 15 items, must have 16"):
        dfpo.train(rollout=play, runs_dir=str(tmp_path), steps=1)
    assert not list(tmp_path.iterdir())
