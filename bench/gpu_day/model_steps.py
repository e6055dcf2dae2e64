"""A training step of PPO and DFPO, and of DFPO on the references, with random Qwen2 models of real
dimensions on answers of real length: time and peak memory of all but the sampling of the answers.

Generation is transformers' and the same for every arm; a few tokens of it are timed beside.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import torch
from card import DEVICE, DRY, keep, milliseconds, peak_gigabytes, synchronize
from transformers import Qwen2Config, Qwen2ForCausalLM

from dfpo.config import build_config
from dfpo.config.types import Answers, Rollout, Samples, Scored
from dfpo.method.critics import build_critic, estimate_values
from dfpo.method.targets import compute_targets
from dfpo.method.update import Learner, update
from dfpo.rollout.policy import set_compute_dtype, token_logprobs

# Qwen2.5 0.5B and 1.5B, from their configurations on the hub.
MODELS = {
    "0.5B": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936,
    },
    "1.5B": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151_936,
    },
}  # fmt: skip
ANSWERS, PROMPT, LENGTH, MINIBATCHES = 64, 64, 1024, 16
# Algorithm, DFPO_KERNELS.
ARMS = [("ppo", "auto"), ("dfpo", "auto"), ("dfpo", "reference")]
if DRY:
    tiny = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64,
    }  # fmt: skip
    MODELS = {"tiny": tiny}
    ANSWERS, PROMPT, LENGTH, MINIBATCHES = 4, 3, 9, 2
    ARMS = ARMS[:2]


def make_policy(name: str) -> Qwen2ForCausalLM:
    config = Qwen2Config(**MODELS[name], tie_word_embeddings=True, max_position_embeddings=4096)
    torch.manual_seed(0)
    with torch.device(DEVICE):
        policy = Qwen2ForCausalLM(config).eval()
    if not DRY:
        for part in (policy.base_model, policy.get_output_embeddings()):
            set_compute_dtype(part, torch.bfloat16)
    return policy


def make_rollout(policy: Qwen2ForCausalLM) -> Rollout:
    """Random answers with random rewards: what an update costs depends on neither."""
    generator = torch.Generator(DEVICE).manual_seed(1)
    shape = (ANSWERS, PROMPT + LENGTH)
    ids = torch.randint(0, policy.config.vocab_size, shape, generator=generator, device=DEVICE)
    mask = torch.ones(ANSWERS, LENGTH, dtype=torch.bool, device=DEVICE)
    samples = Samples(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mask=mask,
        truncated=torch.zeros(ANSWERS, dtype=torch.bool, device=DEVICE),
    )
    logprobs = []
    with torch.no_grad():
        for rows in torch.arange(ANSWERS, device=DEVICE).chunk(MINIBATCHES):
            part = samples.select(rows)
            logprobs.append(token_logprobs(policy, part, 1.0, entropy=False)[0])
    old = torch.cat(logprobs)
    rewards = torch.rand(ANSWERS, generator=generator, device=DEVICE).round()
    return Rollout(
        scored=Scored(values=rewards.cpu(), parts={}, unscored=0, invalid=0, problem=None),
        answers=Answers(
            rows=[{}] * ANSWERS, texts=[""] * ANSWERS, token_ids=[[0] * LENGTH] * ANSWERS,
            sample_ids=torch.arange(ANSWERS, device=DEVICE),
        ),
        samples=samples,
        groups=torch.arange(ANSWERS, device=DEVICE) // 4,
        clean_rewards=rewards, rewards=rewards,
        old_logprobs=old, ref_logprobs=old, entropy=torch.zeros_like(old),
    )  # fmt: skip


def measure(model: str, arm: str) -> dict[str, object]:
    policy = make_policy(model)
    config = build_config(
        {
            "algorithm": arm, "reward.low": 0, "reward.high": 1,
            "policy.minibatches": MINIBATCHES,
            "policy.learning_rate": 1e-6, "critic.learning_rate": 1e-5,
        }
    )  # fmt: skip
    rollout = make_rollout(policy)
    critic = build_critic(policy, config).to(DEVICE)
    if not DRY:
        set_compute_dtype(critic.trunk, torch.bfloat16)
    optimizers = [
        torch.optim.AdamW(module.parameters(), lr=1e-6, fused=True) for module in (policy, critic)
    ]
    generator = torch.Generator(DEVICE).manual_seed(0)
    learner = Learner(policy, critic, *optimizers, generator)

    def estimate():
        """In the same parts as the update: one batch of all answers would not fit."""
        parts = []
        for rows in torch.arange(ANSWERS, device=DEVICE).chunk(MINIBATCHES):
            parts.append(estimate_values(critic, rollout.samples.select(rows), generator))
        first = parts[0]
        joined = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("quantiles", "final")
        }
        return dataclasses.replace(first, **joined)

    def step():
        targets = compute_targets(rollout, estimate(), config, 0)
        update(learner, rollout, targets, config, 0, train_policy=True)

    step()  # compiles kernels and makes the optimiser's state
    rounds = 1 if DRY else 3
    peak = peak_gigabytes(step)
    values = estimate()
    stages = {
        "estimate": milliseconds(estimate, rounds),
        "targets": milliseconds(lambda: compute_targets(rollout, values, config, 0), rounds),
        "step": milliseconds(step, rounds),
    }
    synchronize()
    return {
        "model": model, "arm": arm, "kernels": os.environ.get("DFPO_KERNELS", "auto"),
        "milliseconds": stages["step"], "stages": stages, "peak_gigabytes": peak,
        "parameters": policy.num_parameters(),
    }  # fmt: skip


def main() -> None:
    """Each arm in a process of its own: DFPO_KERNELS is read once, and memory starts empty."""
    records: list[dict] = []
    for model in MODELS:
        for arm, kernels in ARMS:
            command = [sys.executable, __file__, model, arm]
            environment = os.environ | {"DFPO_KERNELS": kernels}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            print(done.stdout[-500:], done.stderr[-1500:], flush=True)
            failed = {
                "model": model, "arm": arm, "kernels": kernels, "milliseconds": None,
                "peak_gigabytes": None, "error": done.stderr[-500:],
            }  # fmt: skip
            ended = done.returncode == 0
            records.append(json.loads(done.stdout.splitlines()[-1]) if ended else failed)
            keep({"records": records})
    if any("error" in record for record in records):
        raise SystemExit("an arm failed")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(*sys.argv[1:])))
    else:
        main()
