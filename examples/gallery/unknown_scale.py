"""A reward model whose scale nobody wrote down.

Its scores lie around -37: right answers near -30, wrong ones near -44. The trainer measures the
range on the first answers, and the critic answers in the model's own units.

    python examples/gallery/unknown_scale.py [STEPS] [PICTURE]
"""

import sys
from zlib import crc32

import matplotlib.pyplot as plt

import dfpo
from dfpo.tasks import problem


def judge(completions, answer, **_):
    """Stands for a reward model: 14 points for the right result, up to 3 either way for words."""
    right = [
        text.split()[-4:] == a.split()[-4:] for text, a in zip(completions, answer, strict=True)
    ]
    wording = [crc32(text.encode()) % 600 / 100 - 3 for text in completions]
    return [-44 + 14 * good + more for good, more in zip(right, wording, strict=True)]


def main(steps=40, picture="runs/unknown_scale.png"):
    drawn = [problem(0, "train", "math", "id", index) for index in range(400)]
    rows = [{"prompt": each.prompt, "answer": each.answer} for each in drawn]
    run = dfpo.train(
        data=rows, reward=judge, steps=int(steps), eval={"prompts": 0}, name="unknown-scale"
    )

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    scores = list(run.metrics["reward/clean"])
    left.plot(scores)
    left.set(title="Score of the step's answers", xlabel="step")
    # A carry is forgotten at the first column that has one.
    answer = next(each for each in drawn if "+ 1 =" in each.answer)
    slip = answer.answer.replace("+ 1 =", "+ 0 =", 1)
    for text, colour, name in ((answer.answer, "#0072B2", "right"), (slip, "#D55E00", "a slip")):
        values = run.values(answer.prompt, text)
        low, high = values.quantiles.quantile(0.1, 1), values.quantiles.quantile(0.9, 1)
        right.fill_between(range(len(values.tokens)), low, high, color=colour, alpha=0.2)
        right.plot(values.mean, color=colour, label=name)
    right.set(title="What the critic expects, token by token", xlabel="token")
    right.legend(frameon=False)
    figure.savefig(picture)
    print(f"score of the first step {scores[0]:.1f}, of the last {scores[-1]:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
