"""Plots of a comparison: learning curves, accuracy against noise, differences to the baseline."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from dfpo.run.plots import DOMAIN_COLOURS, GREY, STYLE, plt, smooth
from dfpo.run.records import read_metrics
from dfpo.study.overview import Overview, overviews, profile
from dfpo.study.results import GROUPS, Result, groups, paired, per_seed

Curves = dict[tuple[str, str, str], np.ndarray]  # (domain, noise, arm) -> [seeds, steps]
MARKERS = "osD^vP*X"


def plot_comparison(output: Path, results: list[Result], baseline: str) -> None:
    """Writes learning_curves.png, of grids that evaluate levels.png and differences.png, and of
    those with several noises overview.png, into ``plots``."""
    folder = output / "plots"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with plt.rc_context(STYLE):
        if curves := all_curves(output, results):
            plot_curves(curves).savefig(folder / "learning_curves.png")
        if any(run["after"] for run in results):
            plot_levels(results).savefig(folder / "levels.png")
        if paired(results, baseline):
            plot_differences(results, baseline).savefig(folder / "differences.png")
        if every := overviews(results, baseline):
            plot_overview(every, baseline).savefig(folder / "overview.png")
        plt.close("all")


def all_curves(output: Path, results: list[Result]) -> Curves:
    """Clean reward of each step's answers, NaN where a run has none at a step."""
    curves = {
        key: stack([read_curve(output, run) for run in runs])
        for key, runs in groups(results).items()
    }
    return {key: seeds for key, seeds in curves.items() if seeds.size}


def read_curve(output: Path, run: Result) -> list[float]:
    if "curve" in run:
        return [np.nan if v is None else v for v in run["curve"]]
    # Results of earlier versions leave it with the run, which may not be here.
    folder = output / "cells" / run["domain"] / run["noise"] / run["arm"] / f"seed{run['seed']}"
    if not folder.is_dir():
        return []
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


def plot_overview(every: list[Overview], baseline: str) -> plt.Figure:
    """A row a domain: differences to the baseline in means over noises, as ``plot_differences``
    draws them, and the share of runs that end above each level."""
    rows = list(dict.fromkeys(one.domain for one in every))
    figure, axes = plt.subplots(
        len(rows), 2, figsize=(9, 0.28 * len(every) + 2 * len(rows)), constrained_layout=True,
        squeeze=False,
    )  # fmt: skip
    colour = colours([one.arm for one in every])
    levels = np.linspace(0, 1, 201)

    for (forest, shares), domain in zip(axes, rows, strict=True):
        own = [one for one in every if one.domain == domain]
        base = [one.means for one in own if one.arm == baseline]
        others = [one for one in own if one.difference]
        for y, one in enumerate(others):
            gap, shade = one.difference, colour[one.arm]
            for bounds, width in ((gap.student, 1.0), (gap.bootstrap, 3.0)):
                forest.plot(100 * np.array(bounds), [y, y], color=shade, linewidth=width)
            seeds = 100 * (one.means - base[0])
            forest.scatter(seeds, [y + 0.25] * len(seeds), color=shade, s=9, alpha=0.7, linewidth=0)
            forest.scatter(100 * gap.mean, y, color="white", edgecolor=shade, s=26, zorder=3)
        forest.axvline(0, color=GREY, linewidth=0.8)
        forest.set_yticks(range(len(others)), [one.arm for one in others])
        forest.set_ylim(len(others) - 0.5, -0.5)
        forest.set(title=f"{domain}, mean over noises", xlabel=f"points above {baseline}")

        for one in own:
            shares.plot(levels, profile(one.scores, levels), color=colour[one.arm], linewidth=1.4)
        shares.set(title="runs that end above", xlabel=GROUPS["all"], ylabel="share of runs")

    _legend(figure, colour)
    return figure


def _legend(figure: plt.Figure, colour: dict[str, str]) -> None:
    lines = [plt.Line2D([], [], color=c, label=arm) for arm, c in colour.items()]
    figure.legend(handles=lines, loc="outside right upper", fontsize=8)
