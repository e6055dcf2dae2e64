"""Pictures of what a critic knows."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from dfpo.config import Config
from dfpo.run.plots import BLUE, DOMAIN_COLOURS, GREEN, GREY, ORANGE, STYLE, randomised_pit
from dfpo.study.probe.replays import Probe

# Score -> what a perfect critic, or for turn_share chance, would have.
COMPARED = {
    "explained_variance": None, "bias": None, "w1": "w1_floor", "crps_skill": None,
    "sign_agreement": "sign_ceiling", "turn_share": "turn_chance",
}  # fmt: skip
Scores = dict[str, tuple[float | None, float | None, float | None]]
MOST_TOKENS = 60  # of an answer that is drawn


def plot_probe(folder: Path, probe: Probe, config: Config) -> None:
    """Writes critic_values.png and critic_answers.png."""
    with plt.rc_context(STYLE):
        plot_values(probe, config).savefig(folder / "critic_values.png")
        plot_answers(probe, config).savefig(folder / "critic_answers.png")
        plt.close("all")


def plot_values(probe: Probe, config: Config) -> plt.Figure:
    """Predicted mean against true value; rank of plays in the predicted distribution."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), constrained_layout=True)
    low, high = config.reward.low, config.reward.high
    predicted, true = probe.quantiles.mean(1), probe.clean.mean(1)
    domains = np.array(probe.domains)[probe.answer]

    for name, colour in zip(dict.fromkeys(probe.domains), DOMAIN_COLOURS, strict=False):
        member = domains == name
        left.plot(
            true[member], predicted[member], ".", color=colour, alpha=0.5, markersize=4, label=name
        )

    left.plot([low, high], [low, high], color=GREY, linewidth=0.8, linestyle="--")
    left.set(
        title="Value of each state", ylabel="predicted mean return",
        xlabel=f"mean clean return of {probe.clean.shape[1]} plays",
    )  # fmt: skip
    left.legend(loc="upper left")
    seen = np.where(np.isfinite(probe.noisy), probe.noisy, probe.clean)
    quantiles = np.repeat(probe.quantiles, seen.shape[1], 0)
    ranks = randomised_pit(quantiles, seen.reshape(-1))
    right.hist(
        ranks, bins=20, range=(0, 1), density=True, color=BLUE, alpha=0.7, edgecolor="white",
        linewidth=0.4,
    )  # fmt: skip
    right.axhline(1, color=GREY, linewidth=0.8, linestyle="--")
    right.set(
        title="Distribution: rank of noisy returns in the prediction",
        xlabel="probability integral transform", ylabel="density (1 = calibrated)",
    )  # fmt: skip

    return figure


def plot_answers(probe: Probe, config: Config) -> plt.Figure:
    """One answer per domain, the one whose true value falls most at one token: every token
    coloured by the value and spread predicted before it, and by its true value."""
    low, high = config.reward.low, config.reward.high
    chosen = [_most_fallen(probe, name) for name in dict.fromkeys(probe.domains)]
    figure, axes = plt.subplots(
        len(chosen), 1, figsize=(11, 2.1 * len(chosen)), constrained_layout=True, squeeze=False
    )

    for ax, answer in zip(axes.flat, chosen, strict=True):
        states = np.flatnonzero(probe.answer == answer)[:MOST_TOKENS]
        quantiles = probe.quantiles[states]
        rows = [quantiles.mean(1), probe.clean[states].mean(1), quantiles.std(1)]
        drawn = np.stack([(rows[0] - low) / (high - low), (rows[1] - low) / (high - low)])
        spread = rows[2][None] / (high - low)
        width = len(states)
        shared = {"aspect": "auto", "vmin": 0}
        ax.imshow(drawn, cmap="RdYlBu", vmax=1, extent=(0, width, 3, 1), **shared)
        ax.imshow(spread, cmap="Greys", vmax=0.6, extent=(0, width, 4, 3), **shared)
        ax.set(ylim=(4, 1), xlim=(0, width))
        ax.set_yticks([1.5, 2.5, 3.5], ["predicted value", "true value", "predicted spread"])
        ax.set_xticks(np.arange(width) + 0.5, probe.words[answer][:width], rotation=90, fontsize=7)
        ax.set_title(f"{probe.domains[answer]}, reward {probe.rewards[answer]:g}")
        ax.tick_params(length=0)

    figure.suptitle(
        "Red: low value, blue: high. Grey: spread of the predicted distribution. A token's "
        "colours are of the state before it.", fontsize=8,
    )  # fmt: skip
    return figure


def plot_critics(path: Path, critics: dict[str, Scores], means: dict[str, Scores]) -> None:
    """Scores of several critics and means of groups of them with their intervals, a panel each."""
    everything = [*critics.values(), *means.values()]
    colours = [BLUE] * len(critics) + [GREEN] * len(means)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(COMPARED), figsize=(2.2 * len(COMPARED), 0.7 + 0.35 * len(everything)),
            sharey=True, constrained_layout=True,
        )  # fmt: skip
        for ax, (key, reference) in zip(axes, COMPARED.items(), strict=True):
            for y, (scored, colour) in enumerate(zip(everything, colours, strict=True)):
                if None in scored[key]:
                    continue
                value, low, high = scored[key]
                ax.plot([low, high], [y, y], color=colour, linewidth=1.5)
                ax.plot([value], [y], "o", color=colour, markersize=4)
            ax.axvline(0, color=GREY, linewidth=0.6)
            ax.set(title=key.replace("_", " "))
            levels = [scored[reference][0] for scored in critics.values()] if reference else []
            levels = [level for level in levels if level is not None]
            if levels:
                ax.axvline(np.mean(levels), color=ORANGE, linewidth=0.8, linestyle="--")
        axes[0].set_yticks(range(len(everything)), [*critics, *(f"{name}: mean" for name in means)])
        axes[0].invert_yaxis()
        figure.savefig(path)
        plt.close(figure)


def _most_fallen(probe: Probe, domain: str) -> int:
    """The answer of a domain with the largest loss of true value at one token."""
    fall = probe.clean.mean(1) - probe.after.mean(1)
    member = np.array(probe.domains)[probe.answer] == domain
    return int(probe.answer[np.where(member, fall, -np.inf).argmax()])
