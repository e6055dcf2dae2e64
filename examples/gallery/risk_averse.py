"""Two doors: one pays 0.5, the other 1 or 0 at odds of 6 to 4. Which one is learned is a choice:
the mean prefers the second, the mean of the worst quarter the first.

The advantage of the first step is the value behind the door less the value before it, so a measure
of the predicted distribution in place of its mean makes the policy averse to risk. At a trace of 1
the return itself would take its place, and the measure would cancel.

    python examples/gallery/risk_averse.py [STEPS] [PICTURE]
"""

import sys

import matplotlib.pyplot as plt
import torch

from dfpo_kernels import distributional_gae, lambda_mixture_targets
from dfpo_kernels.nn import ValueFlowHead

BATCH, QUANTILES = 64, 32
MEASURES = {
    "mean": lambda values: values.mean(-1, keepdim=True),
    "mean of the worst quarter": lambda values: values[..., : QUANTILES // 4].mean(
        -1, keepdim=True
    ),
}


def learn(measure, steps):
    """The share of answers that take the safe door, step by step, and what lies behind each."""
    torch.manual_seed(0)
    choice = torch.zeros(2, requires_grad=True)
    # States: before the doors, behind the safe one, behind the other.
    states = torch.eye(3)
    critic = ValueFlowHead(
        3, QUANTILES, 16, linear_mean=False, return_mean=0.5, return_scale=0.5, return_range=(0, 1)
    )
    optimizer = torch.optim.Adam(
        [{"params": [choice], "lr": 0.03}, {"params": critic.parameters(), "lr": 1e-2}]
    )
    mask, share = torch.ones(BATCH, 2), []
    for step in range(steps):
        doors = torch.distributions.Categorical(logits=choice).sample((BATCH,))
        rewards = torch.zeros(BATCH, 2)
        rewards[:, 1] = torch.where(doors == 0, 0.5, (torch.rand(BATCH) < 0.6).float())
        hidden = torch.stack([states[0].expand(BATCH, 3), states[1 + doors]], 1)
        with torch.no_grad():
            values = critic(hidden)
            shared = {"gamma": 1.0, "lam": 0.0}
            advantages, _ = distributional_gae(rewards, measure(values), mask, **shared)
            targets = lambda_mixture_targets(rewards, values, mask, gamma=1.0, lam=1.0, seed=step)
        # The critic learns for a while before the policy listens.
        listened = advantages[:, 0, 0] * (step >= steps // 4)
        policy_loss = -(choice.log_softmax(-1)[doors] * listened).mean()
        loss, _ = critic.loss(hidden, targets, mask)
        optimizer.zero_grad()
        (policy_loss + loss).backward()
        optimizer.step()
        share.append(choice.softmax(-1)[0].item())
    return share, critic(states).detach()


def main(steps=400, picture="runs/risk_averse.png"):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for name, measure in MEASURES.items():
        share, values = learn(measure, int(steps))
        axes[0].plot(share, label=name)
        print(f"{name}: the safe door at last {share[-1]:.2f}")
    axes[0].set(title="Share of the safe door", xlabel="step", ylim=(0, 1))
    axes[0].legend(frameon=False)
    levels = (torch.arange(QUANTILES) + 0.5) / QUANTILES
    for state, name in ((1, "behind the safe door"), (2, "behind the other")):
        axes[1].plot(levels, values[state], label=name)
    axes[1].set(title="Predicted quantiles of the return", xlabel="level", ylabel="return")
    axes[1].legend(frameon=False)
    figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
