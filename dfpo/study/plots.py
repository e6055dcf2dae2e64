"""Plots of a comparison: learning curves, accuracy against noise, differences to the baseline."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from dfpo.run.plots import DOMAIN_COLOURS, GREY, STYLE, plt, smooth
from dfpo.run.records import read_metrics
from dfpo.study.results import GROUPS, Result, groups, paired, per_seed

Curves = dict[tuple[str, str, str], np.ndarray]  # (domain, noise, arm) -> [seeds, steps]
MARKERS = "osD^vP*X"


def plot_comparison(output: Path, results: list[Result], baseline: str) -> None:
    """Writes learning_curves.png, and of grids that evaluate levels.png and differences.png, into
    ``plots``."""
    folder = output / "plots"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with plt.rc_context(STYLE):
        curves = {
            key: stack([read_curve(output, run) for run in runs])
            for key, runs in groups(results).items()
        }
        plot_curves(curves).savefig(folder / "learning_curves.png")
        if any(run["after"] for run in results):
            plot_levels(results).savefig(folder / "levels.png")
        if paired(results, baseline):
            plot_differences(results, baseline).savefig(folder / "differences.png")
        plt.close("all")


def read_curve(output: Path, run: Result) -> list[float]:
    """Clean reward of each step's answers."""
    folder = output / "cells" / run["domain"] / run["noise"] / run["arm"] / f"seed{run['seed']}"
    values = (step.get("reward/clean") for step in read_metrics(folder))
    return [np.nan if v is None else v for v in values]


def stack(curves: list[list[float]]) -> np.ndarray:  # [seeds, steps]
    longest = max(map(len, curves))
    return np.array([[*curve, *[np.nan] * (longest - len(curve))] for curve in curves])


def colours(names: list[str]) -> dict[str, str]:
    palette = (*DOMAIN_COLOURS, "black", "#8c510a", "#762a83")
    return {name: palette[i % len(palette)] for i, name in enumerate(dict.fromkeys(names))}


def plot_curves(curves: Curves) -> plt.Figure:
    """Clean training reward, smoothed: mean over seeds and, where there are several, the range from
    the lowest to the highest seed."""
    rows = list(dict.fromkeys(key[0] for key in curves))
    columns = list(dict.fromkeys(key[1] for key in curves))
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=(3.6 * len(columns) + 1, 2.8 * len(rows) + 0.4),
        sharex=True, sharey=True, constrained_layout=True, squeeze=False,
    )  # fmt: skip
    colour = colours([key[2] for key in curves])

    for (domain, noise, arm), values in curves.items():
        ax = axes[rows.index(domain), columns.index(noise)]
        smoothed = np.array([smooth(seed) for seed in values])
        steps = np.arange(values.shape[1])
        ax.plot(steps, smoothed.mean(0), color=colour[arm], linewidth=1.5, label=arm)
        if len(values) > 1:
            low, high = smoothed.min(0), smoothed.max(0)
            ax.fill_between(steps, low, high, color=colour[arm], alpha=0.15, linewidth=0)
        ax.set_title(f"{domain}, {noise}")

    for ax in axes[:, 0]:
        ax.set_ylabel("clean training reward")

    for ax in axes[-1]:
        ax.set_xlabel("step")

    _legend(figure, colour)
    return figure


def plot_levels(results: list[Result]) -> plt.Figure:
    """Final averages against noise: mean and standard deviation over seeds."""
    grouped = groups(results)
    rows, noises, arms = ([*dict.fromkeys(key[i] for key in grouped)] for i in range(3))
    known = [g for g in GROUPS if any(per_seed(runs, g) for runs in grouped.values())]
    figure, axes = plt.subplots(
        len(rows), len(known), figsize=(3.4 * len(known) + 1, 2.8 * len(rows) + 0.4),
        sharey=True, constrained_layout=True, squeeze=False,
    )  # fmt: skip
    colour = colours(arms)

    for y, domain in enumerate(rows):
        for x, group in enumerate(known):
            ax = axes[y, x]
            starts = [
                r["before"][group]
                for r in results
                if r["domain"] == domain and group in r["before"]
            ]
            if not starts:
                ax.set_axis_off()
                continue
            for i, arm in enumerate(arms):
                values = [
                    list(per_seed(grouped.get((domain, noise, arm), []), group).values())
                    for noise in noises
                ]
                means = [np.mean(v) if v else np.nan for v in values]
                errors = [np.std(v, ddof=1) if len(v) > 1 else 0.0 for v in values]
                # Beside each other, or error bars would hide error bars.
                places = np.arange(len(noises)) + 0.06 * (i - (len(arms) - 1) / 2)
                ax.errorbar(
                    places, means, errors, color=colour[arm], marker=MARKERS[i % len(MARKERS)],
                    markersize=4, linewidth=1.2, capsize=2,
                )  # fmt: skip
            start = np.mean(np.array(starts, dtype=float))  # None is NaN: no line
            ax.axhline(start, color=GREY, linewidth=0.8, linestyle=":")
            ax.set_xticks(range(len(noises)), noises, rotation=20 if len(noises) > 3 else 0)
            ax.set_title(f"{GROUPS[group]}, {domain}")

    for ax in axes[:, 0]:
        ax.set_ylabel(f"final {results[0]['metric']} (dotted: first policy)")

    _legend(figure, colour)
    return figure


def plot_differences(results: list[Result], baseline: str) -> plt.Figure:
    """Forest plot: mean difference to the baseline, thick the bootstrap's interval, thin Student's,
    dots under them the seeds."""
    grouped = groups(results)
    rows = paired(results, baseline)
    names = list(dict.fromkeys(key for key, _, _ in rows))
    known = [g for g in GROUPS if any(group == g for _, group, _ in rows)]
    figure, axes = plt.subplots(
        1, len(known), figsize=(3 * len(known) + 2.5, 0.32 * len(names) + 1.2),
        sharex=True, sharey=True, constrained_layout=True, squeeze=False,
    )  # fmt: skip
    colour = colours([key[2] for key in grouped])

    for key, group, difference in rows:
        ax, y = axes[0, known.index(group)], names.index(key)
        shade = colour[key[2]]
        for bounds, width in ((difference.student, 1.0), (difference.bootstrap, 3.0)):
            ax.plot(100 * np.array(bounds), [y, y], color=shade, linewidth=width)
        base = per_seed(grouped.get((*key[:2], baseline), []), group)
        seeds = [100 * (v - base[s]) for s, v in per_seed(grouped[key], group).items() if s in base]
        ax.scatter(seeds, [y + 0.22] * len(seeds), color=shade, s=9, alpha=0.7, linewidth=0)
        ax.scatter(100 * difference.mean, y, color="white", edgecolor=shade, s=26, zorder=3)

    for x, group in enumerate(known):
        axes[0, x].axvline(0, color=GREY, linewidth=0.8)
        axes[0, x].set(title=GROUPS[group], xlabel=f"points above {baseline}")

    axes[0, 0].set_yticks(range(len(names)), [f"{n[2]}   {n[0]} {n[1]}" for n in names])
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    return figure


def _legend(figure: plt.Figure, colour: dict[str, str]) -> None:
    lines = [plt.Line2D([], [], color=c, label=arm) for arm, c in colour.items()]
    figure.legend(handles=lines, loc="outside right upper", fontsize=8)
