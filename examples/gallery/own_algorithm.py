"""An algorithm of your own in twenty lines: an advantage that counts for less where the critic is
not sure, beside the one it was made from.

    python examples/gallery/own_algorithm.py [STEPS] [PICTURE]
"""

import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import torch

import dfpo
from dfpo.config.algorithms import ALGORITHMS, Algorithm
from dfpo.config.choices import ADVANTAGES
from dfpo.method.advantages import gae


def by_sureness(returns):  # [B, T]
    """GAE, the less the more spread the predicted return is beside a tenth of its range."""
    reward = returns.config.reward
    spread = returns.estimate.quantiles.std(-1, correction=0)
    sure = 0.1 * (reward.high - reward.low) / (spread + 0.1 * (reward.high - reward.low))
    return torch.where(returns.mask, gae(returns) * sure, 0.0)


# It reads what GAE reads, a critic's values among it.
ADVANTAGES["by_sureness"] = replace(ADVANTAGES["gae"], target=f"{__name__}:by_sureness")
ALGORITHMS["dfpo-sure"] = Algorithm(
    "dfpo-mean whose advantages count for less where it is not sure",
    "this page",
    {**ALGORITHMS["dfpo-mean"].settings, "target.advantage": "by_sureness"},
)


def main(steps=40, picture="runs/own_algorithm.png"):
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    for algorithm in ("dfpo-mean", "dfpo-sure"):
        run = dfpo.train(
            algorithm=algorithm, noise="flip=0.3", steps=int(steps), eval={"prompts": 0},
            name=f"own-{algorithm}",
        )  # fmt: skip
        curve = list(run.metrics["reward/clean"])
        axis.plot(curve, label=algorithm)
        print(f"{algorithm}: last five steps {sum(curve[-5:]) / len(curve[-5:]):.3f}")
    axis.set(title="True reward, while three labels in ten are flipped", xlabel="step", ylim=(0, 1))
    axis.legend(frameon=False)
    figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
