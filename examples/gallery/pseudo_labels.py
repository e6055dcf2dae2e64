"""Labels by majority vote: nobody knows the right answer, so the first policy's most frequent one
stands for it. What training is told, and what is true, come apart.

    python examples/gallery/pseudo_labels.py [STEPS] [PICTURE]
"""

import sys

import matplotlib.pyplot as plt

import dfpo


def main(steps=40, picture="runs/pseudo_labels.png"):
    run = dfpo.train(
        task="suite", noise="vote=8", steps=int(steps), eval={"prompts": 0}, name="pseudo-labels"
    )
    told, true = (list(run.metrics[f"reward/{kind}"]) for kind in ("noisy", "clean"))
    wrong = list(run.metrics["reward/corrupted"])

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    left.plot(told, color="#D55E00", label="told by the vote")
    left.plot(true, color="#0072B2", label="true")
    left.set(title="Mean reward of the step's answers", xlabel="step", ylim=(0, 1))
    left.legend(frameon=False)
    right.plot(wrong, color="#6b6b6b")
    right.set(title="Share of answers with a wrong label", xlabel="step", ylim=(0, 1))
    figure.savefig(picture)
    last = slice(-5, None)
    told, true = (sum(row[last]) / len(row[last]) for row in (told, true))
    print(f"last five steps: told {told:.3f}, true {true:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
