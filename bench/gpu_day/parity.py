"""One training step on the CPU and on the GPU from the same weights and the same rollout: every
value, target, loss and gradient, in float32 and, more loosely, in bfloat16.

Random draws of the step are made on the CPU for both, so that only arithmetic differs.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from card import DEVICE, DRY, keep

from dfpo.config import build_config
from dfpo.config.noise import Noise
from dfpo.config.types import Counts, Rollout
from dfpo.method.critics import build_critic, estimate_values
from dfpo.method.policy_losses import PolicyBatch, clip
from dfpo.method.targets import compute_targets
from dfpo.rewards.functions import Reward
from dfpo.rollout.collect import collect
from dfpo.rollout.policy import SHIPPED_POLICY, load_policy, set_compute_dtype
from dfpo.rollout.sampler import Sampler
from dfpo.tasks import reward
from dfpo.tasks.source import training_rows

VERIFIER = Reward(("verifier",), (reward,), (1.0,))
# ‖gpu - cpu‖ / ‖cpu‖ of a tensor; tokens that differ, a share. In bfloat16 the policy's gradient
# is a difference of nearly equal numbers at ratio 1, so its direction is bounded instead.
MOST_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.3}
# A rank counts orders, which rounding may turn, so that dfpo is compared with the mean's advantage.
ARMS = ("dfpo-mean", "dfpo-paper", "ppo")


def to_device(rollout: Rollout, device: str) -> Rollout:
    """The rollout with all of its tensors there."""

    def moved(part):
        tensors = {k: v.to(device) for k, v in vars(part).items() if isinstance(v, torch.Tensor)}
        return dataclasses.replace(part, **tensors)

    parts = {"samples": moved(rollout.samples), "answers": moved(rollout.answers)}
    return dataclasses.replace(moved(rollout), **parts)


@contextmanager
def draws_of_the_cpu() -> Iterator[None]:
    """torch.rand and torch.randn draw on the CPU whatever device is asked for."""

    def on_cpu(draw):
        def run(*args, device=None, generator=None, **options):
            return draw(*args, generator=generator, **options).to(device or "cpu")

        return run

    with (
        mock.patch("torch.rand", on_cpu(torch.rand)),
        mock.patch("torch.randn", on_cpu(torch.randn)),
    ):
        yield


def step_on(device: str, policy, critic, rollout: Rollout, config) -> dict[str, torch.Tensor]:
    policy, critic = copy.deepcopy(policy).to(device), copy.deepcopy(critic).to(device)
    rollout = to_device(rollout, device)
    generator = torch.Generator().manual_seed(0)
    with draws_of_the_cpu():
        estimate = estimate_values(critic, rollout.samples, generator)
        targets = compute_targets(rollout, estimate, config, 0)
        counts = Counts.of(rollout.answers.lengths)
        prepared = critic.prepare(targets.critic, rollout.samples.mask, generator)
        loss, terms = critic.loss(rollout.samples, prepared, counts)
        loss.backward()
    everything = list(range(len(rollout.answers)))
    batch = PolicyBatch.of(rollout, targets, everything, counts)
    own, metrics = clip(policy, critic, batch, config)
    own.backward()
    values = {"quantiles": estimate.quantiles, "final": estimate.final}
    values |= {"advantages": targets.advantages, "target_quantiles": targets.critic.quantiles}
    values |= {"critic_loss": loss, "policy_loss": own}
    values |= {f"critic/{name}": x for name, x in terms.items()}
    values |= {f"policy/{name}": x for name, x in metrics.items()}
    for kind, model in (("critic", critic), ("policy", policy)):
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                values[f"grad {kind}.{name}"] = parameter.grad
    return {name: x.detach().double().cpu() for name, x in values.items()}


def compare(cpu: dict[str, torch.Tensor], gpu: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative error of each tensor, the scale of gradients being that of their model's largest:
    a gradient that is rounding alone has no direction to agree on."""
    largest = {
        kind: max(x.norm().item() for name, x in cpu.items() if name.startswith(f"grad {kind}"))
        for kind in ("critic", "policy")
    }
    errors = {}
    for name, expected in cpu.items():
        scale = expected.norm().item()
        for kind, norm in largest.items():
            if name.startswith(f"grad {kind}"):
                scale = max(scale, 1e-3 * norm)
        if not name.startswith("grad"):
            # A mean of numbers around zero is compared with what is added up.
            scale = max(scale, 1e-3)
        errors[name] = (gpu[name] - expected).norm().item() / scale
    return errors


def clipping(arm: str) -> dict[str, bool]:
    """Returns are clipped by the critic that reads the setting."""
    return {"critic.clip_returns": True} if arm.startswith("dfpo") else {}


def main() -> int:
    torch.backends.cuda.matmul.allow_tf32 = False
    record: dict[str, object] = {}
    broken = []
    for arm in ARMS:
        config = build_config(
            {
                "algorithm": arm, "reward.low": 0, "reward.high": 1,
                "rollout.prompts": 2 if DRY else 16, "policy.learning_rate": 1e-4,
                "critic.learning_rate": 1e-3, **clipping(arm),
            }
        )  # fmt: skip
        policy, tokenizer = load_policy(SHIPPED_POLICY)
        torch.manual_seed(0)
        critic = build_critic(policy, config)
        with torch.no_grad():  # a head that starts at zero would hide half of the gradients
            for parameter in critic.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        rows = training_rows(0, 0, config.rollout.prompts)
        arguments = {"reward": VERIFIER, "noise": Noise(), "config": config, "step": 0}
        sampler = Sampler.of(policy, tokenizer)
        rollout = collect(sampler, sampler, rows, **arguments)
        there = copy.deepcopy(policy).to(DEVICE)
        sampler = Sampler.of(there, tokenizer)
        twin = collect(sampler, sampler, rows, **arguments)
        same = twin.samples.input_ids.shape == rollout.samples.input_ids.shape
        tokens = (
            float((twin.samples.input_ids.cpu() == rollout.samples.input_ids).float().mean())
            if same
            else 0.0
        )
        cpu = step_on("cpu", policy, critic, rollout, config)
        record[arm] = {"same_tokens": tokens}
        for dtype, most in MOST_ERROR.items():
            own_policy, own_critic = copy.deepcopy(policy), copy.deepcopy(critic)
            if dtype != torch.float32:
                for part in (
                    own_policy.base_model, own_policy.get_output_embeddings(), own_critic.trunk,
                ):  # fmt: skip
                    set_compute_dtype(part, dtype)
            errors = compare(cpu, step_on(DEVICE, own_policy, own_critic, rollout, config))
            worst = sorted(errors.items(), key=lambda item: -item[1])[:5]
            name = str(dtype).removeprefix("torch.")
            record[arm][name] = {"worst": dict(worst), "compared": len(errors), "bound": most}
            print(arm, name, f"same tokens {tokens:.4f}", worst, flush=True)
            if not worst[0][1] <= most:
                broken.append(f"{arm} {name}: {worst[0][0]} is off by {worst[0][1]:.2g}")
            keep(record)
    for line in broken:
        print("BROKEN", line)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
