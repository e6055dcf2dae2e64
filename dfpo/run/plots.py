"""Plots of a run: learning curves, the value flow along an answer, calibration."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

if "MPLBACKEND" not in os.environ:  # which a notebook sets, to show figures itself
    matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from dfpo.config import Config
from dfpo.run.evaluate import SPLITS, Scores, average, averages, splits_of
from dfpo.run.examples import Fan
from dfpo.run.progress import ValueRecord

# Okabe and Ito's palette: distinct in print and to colour-blind readers.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6b6b6b"
MOST_LABELS = 60  # words under one value fan
LONGEST_LABEL = 24  # letters of a word, or of a domain's name
DOMAIN_COLOURS = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", GREY)
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.dpi": 150,
    "text.parse_math": False,  # words and names are the user's: a dollar sign is a dollar sign
}


def plot_run(
    folder: Path,
    config: Config,
    *,
    metric: str,
    metrics: list[dict[str, Any]],
    before: Scores,
    after: Scores,
    records: list[ValueRecord],
    fans: list[Fan],
    best_step: int | None = None,
) -> None:
    """Writes training.png, accuracy.png (reward.png), value_fan.png, calibration.png and, of a run
    that was evaluated while it trained, evaluations.png into ``folder``."""
    folder.mkdir(exist_ok=True)
    with styled():
        if after:
            plot_scores(before, after, metric).savefig(folder / f"{metric}.png")
        if metrics:
            plot_training(metrics, config).savefig(folder / "training.png")
        if config.eval.every and metrics:
            figure = plot_evaluations(metrics, before, metric, best_step)
            figure.savefig(folder / "evaluations.png")
        if fans:
            plot_value_fan(fans).savefig(folder / "value_fan.png")
        if records:
            plot_calibration(records, config).savefig(folder / "calibration.png")
        plt.close("all")


@contextmanager
def styled() -> Iterator[None]:
    """Our style, and silence about glyphs that a font lacks: words are the user's."""
    with plt.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def plot_training(metrics: list[dict[str, Any]], config: Config) -> plt.Figure:
    """Reward, accuracy per domain, KL and the critic's fit over steps."""
    figure, axes = plt.subplots(2, 2, figsize=(8, 5), sharex=True, constrained_layout=True)
    steps = [m["step"] for m in metrics]
    scale = config.reward.high - config.reward.low

    def curve(ax: plt.Axes, key: str, label: str, colour: str, unit: float = 1.0) -> None:
        values = np.array([m.get(key, np.nan) for m in metrics], dtype=float) / unit
        ax.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
        ax.plot(steps, smooth(values), color=colour, label=label, linewidth=1.6)

    top, right, kl, fit = axes.flat
    if config.noise != "none":
        curve(top, "reward/noisy", f"seen in training ({config.noise})", ORANGE)
    curve(top, "reward/clean", "clean", BLUE)
    top.set(title="Reward of sampled answers", ylabel="mean reward")
    top.legend(loc="best")
    domains = {k: None for m in metrics for k in m if k.startswith(("accuracy/", "domain/"))}

    for key, colour in zip(domains, DOMAIN_COLOURS, strict=False):
        curve(right, key, _cut(key.partition("/")[2]), colour)

    verified = all(key.startswith("accuracy/") for key in domains)
    right.set(title=f"{'Accuracy' if verified else 'Reward'} by domain")
    if verified:
        right.set(ylim=(0, 1.02))
    right.legend(loc="best", fontsize=8)
    curve(kl, "kl", "KL", GREY)
    kl.set(title="Distance from the first policy", ylabel="KL, nats per answer", xlabel="step")

    if any("value/mean" in m for m in metrics) and config.reward.space != "raw":
        # Told rewards may have another unit than clean ones, and several.
        curve(fit, "value/correlation", "correlation", GREEN)
        fit.axhline(0, color=GREY, linewidth=0.6)
        fit.set(title="Critic's mean and the clean return", xlabel="step", ylim=(-0.6, 1))
    elif any("value/mean" in m for m in metrics):
        curve(fit, "value/explained_variance", "explained variance", GREEN)
        curve(fit, "value/bias", "mean bias / reward range", RED, scale)
        fit.axhline(0, color=GREY, linewidth=0.6)
        fit.set(title="Critic against the clean return", xlabel="step", ylim=(-0.6, 1))
    else:
        curve(fit, "advantage/sign_agreement", "advantages of the clean sign", GREEN)
        fit.set(title="Advantages against the clean reward", xlabel="step", ylim=(0, 1.02))

    fit.legend(loc="best")
    kl.xaxis.set_major_locator(MaxNLocator(integer=True))
    warmup = min(config.critic.warmup_steps, len(steps))
    for ax in axes.flat:
        if warmup:
            ax.axvspan(-0.5, warmup - 0.5, color=GREY, alpha=0.1, linewidth=0)

    if warmup:
        top.text(
            warmup / 2 - 0.5, 0.03, "critic warm-up", color=GREY, fontsize=7, rotation=90,
            ha="center", va="bottom", transform=top.get_xaxis_transform(),
        )  # fmt: skip

    return figure


def smooth(values: np.ndarray, span: int = 9) -> np.ndarray:
    """Centred running mean that ignores missing values and shrinks at the ends."""
    half = span // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return np.array([np.nanmean(w) if np.isfinite(w).any() else np.nan for w in windows])


def plot_scores(before: Scores, after: Scores, metric: str) -> plt.Figure:
    """Mean reward, sampled and greedy, before and after, per domain and split."""
    splits = splits_of(before)
    width = max(4.0, 0.75 * (len(before) + 1))
    figure, axes = plt.subplots(
        1, len(splits), figsize=(width * len(splits), 3.3), sharey=True, constrained_layout=True,
        squeeze=False,
    )  # fmt: skip

    for ax, split in zip(axes[0], splits, strict=True):
        names = [name for name in before if split in before[name]]
        names += ["mean"] if len(names) > 1 else []
        for x, name in enumerate(names):
            for mode, offset, colour in (("sampled", -0.15, BLUE), ("greedy", 0.15, ORANGE)):
                low, high = (
                    average(s, split, mode) if name == "mean" else s[name][split][mode]
                    for s in (before, after)
                )
                place = x + offset
                ax.plot([place, place], [low, high], color=colour, linewidth=1.5, zorder=1)
                label = mode if x == 0 else None
                ax.scatter(place, low, facecolor="white", edgecolor=colour, s=28, zorder=2)
                ax.scatter(place, high, color=colour, s=28, zorder=2, label=label)
        title = SPLITS[split].capitalize()
        ax.set_title(title)
        turned = {"rotation": 30, "ha": "right"} if len(names) > 6 else {}
        ax.set_xticks(range(len(names)), [_cut(name) for name in names], **turned)
        if metric == "accuracy":
            ax.set_ylim(-0.02, 1.04)

    axes[0, 0].set_ylabel(f"{metric} (open: before, filled: after)")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8
    )
    return figure


def plot_evaluations(
    metrics: list[dict[str, Any]], before: Scores, metric: str, best_step: int | None
) -> plt.Figure:
    """Means over domains with their standard errors, after so many steps; one panel a split."""
    splits, start = splits_of(before), averages(before)
    points = [(0, {f"eval/{name}": value for name, value in start.items()})]
    points += [(row["step"] + 1, row) for row in metrics if f"eval/{splits[0]}" in row]
    steps = [step for step, _ in points]
    figure, axes = plt.subplots(
        1, len(splits), figsize=(4 * len(splits), 3), sharey=True, constrained_layout=True,
        squeeze=False,
    )  # fmt: skip

    for ax, split in zip(axes[0], splits, strict=True):
        for suffix, label, colour in (("", "sampled", BLUE), ("_greedy", "greedy", ORANGE)):
            mean, error = (
                np.array([row[f"eval/{split}{suffix}{end}"] for _, row in points], dtype=float)
                for end in ("", "_se")
            )
            ax.plot(steps, mean, color=colour, marker="o", markersize=3, label=label)
            ax.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
        if best_step is not None:
            ax.axvline(best_step, color=GREY, linewidth=0.8, linestyle="--", label="best")
        ax.set(title=SPLITS[split].capitalize(), xlabel="steps done")

    axes[0, 0].set_ylabel(f"{metric}, mean over domains")
    axes[0, 0].legend(loc="best", fontsize=8)
    return figure


def plot_value_fan(fans: list[Fan]) -> plt.Figure:
    """The predicted distribution token by token: a row per domain, right beside wrong answer."""
    lines = len(fans) // 2
    figure, axes = plt.subplots(
        lines, 2, figsize=(11, 2.5 * lines), sharey=True, constrained_layout=True, squeeze=False
    )

    for ax, fan in zip(axes.flat, fans, strict=True):
        _fan(ax, fan)

    for ax in axes[:, 0]:
        ax.set_ylabel("predicted return")

    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8
    )
    return figure


def plot_answer(fan: Fan) -> plt.Figure:
    """The predicted return distribution along one answer."""
    with styled():
        figure, ax = plt.subplots(figsize=(8, 3), constrained_layout=True)
        _fan(ax, fan)
        ax.set(title="", ylabel="predicted return")
        ax.legend(loc="best", fontsize=8)
        return figure


def _fan(ax: plt.Axes, fan: Fan) -> None:
    """One answer's value distribution; the state before word i stands at i."""
    x = np.arange(len(fan.quantiles))
    for low, high, alpha in ((5, 95, 0.18), (25, 75, 0.35)):
        bounds = np.percentile(fan.quantiles, [low, high], axis=1)
        label = f"{low} to {high} %"
        ax.fill_between(x, *bounds, color=BLUE, alpha=alpha, linewidth=0, label=label)

    ax.plot(x, fan.quantiles.mean(1), color=BLUE, linewidth=1.5, label="mean")
    ax.set_title(f"{_cut(fan.domain)}, {fan.label} answer")
    if fan.slip is not None:
        word = fan.words[fan.slip] if fan.slip < len(fan.words) else "end"
        ax.axvline(fan.slip, color=RED, linewidth=1)
        # At the other end of the title's line, where no slip can push it into the title.
        ax.set_title(f"slip: {_cut(word)}", loc="right", color=RED, fontsize=8)

    shown = x[:: max(1, len(x) // MOST_LABELS)]
    ax.set_xticks(shown, [_cut(fan.words[i]) for i in shown], rotation=90, fontsize=6.5)
    ax.set(xlim=(-0.5, len(x) - 0.5))


def _cut(text: str) -> str:
    """Short enough to stand beside others."""
    return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"


def plot_calibration(records: list[ValueRecord], config: Config) -> plt.Figure:
    """Predicted mean and distribution against the returns that followed, late in training."""
    quantiles, clean, noisy, answers = (
        np.concatenate(parts) for parts in zip(*records, strict=True)
    )
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), constrained_layout=True)

    predicted = quantiles.mean(1)
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, 11)))
    bins = np.clip(np.searchsorted(edges, predicted, side="right") - 1, 0, max(len(edges) - 2, 0))
    returns = [(clean, BLUE, "clean return")]
    drawn: list[float] = []
    if config.noise != "none":
        returns.append((noisy, ORANGE, "return seen in training"))

    for observed, colour, label in returns:
        groups = [bins == b for b in np.unique(bins)]
        centres = [predicted[g].mean() for g in groups]
        means = [observed[g].mean() for g in groups]
        drawn += centres + means
        # Tokens of one answer share its return, so answers are what is counted.
        counts = [len(np.unique(answers[g])) for g in groups]
        errors = [1.96 * observed[g].std() / n**0.5 for g, n in zip(groups, counts, strict=True)]
        left.errorbar(
            centres, means, errors, color=colour, marker="o", markersize=4, linewidth=1, label=label
        )

    raw = config.reward.space == "raw"
    # Elsewhere a range is neither known nor needed.
    low, high = (config.reward.low, config.reward.high) if raw else (min(drawn), max(drawn))
    left.plot([low, high], [low, high], color=GREY, linewidth=0.8, linestyle="--")
    margin = 0.03 * (high - low) or 0.5
    bounds = (low - margin, high + margin)
    left.set(
        title="Mean: predicted against observed", xlabel="predicted mean return",
        ylabel="observed mean return", xlim=bounds, ylim=bounds,
    )  # fmt: skip
    left.legend(loc="upper left")

    right.hist(
        randomised_pit(quantiles, noisy), bins=20, range=(0, 1), density=True,
        color=BLUE, alpha=0.7, edgecolor="white", linewidth=0.4,
    )  # fmt: skip
    right.axhline(1, color=GREY, linewidth=0.8, linestyle="--")
    right.set(
        title="Distribution: rank of the return in the prediction",
        xlabel="probability integral transform", ylabel="density (1 = calibrated)",
    )  # fmt: skip

    return figure


def randomised_pit(quantiles: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Rank of each observed return among its predicted quantiles, ties broken at random.

    Uniform on [0, 1] if and only if the predictions are calibrated on average, discrete returns
    included. Source: Czado, Gneiting, Held 2009, "Predictive model assessment".
    """
    span = 1e-3 * (np.ptp(observed) or 1.0)
    below = (quantiles < observed[:, None] - span).mean(1)
    upto = (quantiles <= observed[:, None] + span).mean(1)
    return below + np.random.default_rng(0).random(len(observed)) * (upto - below)
