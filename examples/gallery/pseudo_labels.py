"""Labels by majority vote: nobody knows the right answer, so the first policy's most frequent one
stands for it. What training is told, and what is true, come apart.

    python examples/gallery/pseudo_labels.py [STEPS] [PICTURE]
"""

import sys

import matplotlib.pyplot as plt

import dfpo


def main(steps=40, picture="runs/pseudo_labels.png"):
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
    for axis, noise in zip(axes, ("vote=8", "none"), strict=True):
        run = dfpo.train(
            task="suite", noise=noise, steps=int(steps), eval={"prompts": 0},
            name=f"pseudo-labels-{noise.partition('=')[0]}",
        )  # fmt: skip
        told, true = (list(run.metrics[f"reward/{kind}"]) for kind in ("noisy", "clean"))
        axis.plot(told, color="#D55E00", label="told")
        axis.plot(true, color="#0072B2", label="true")
        axis.set(title={"none": "a verifier"}.get(noise, "the vote of 8 answers"), xlabel="step")
        print(f"{noise}: told {sum(told[-5:]) / 5:.3f}, true {sum(true[-5:]) / 5:.3f}")
    axes[0].legend(frameon=False)
    figure.savefig(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
