"""``dfpo critic``: what the critics of some runs know, measured by playing on from their states."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from dfpo.config import ConfigError, build_config, stored_settings
from dfpo.config.rules import predicts
from dfpo.run import checkpoint
from dfpo.run.records import labels, write_json
from dfpo.run.report.page import check_output, write_page
from dfpo.run.setup import set_up
from dfpo.study.probe.replays import Replayed, plays_of, probe, replay
from dfpo.study.probe.scores import SCORES, critic_scores
from dfpo.study.statistics import student_interval


def probe_runs(
    runs: list[Path], answers: int, plays: int, plot: Path | None, page: Path | None = None
) -> dict[str, Any]:
    """Scores of each run's critic, also written to its critic.json, critic.html and plots/; those
    of all of them to ``plot`` and ``page``. Raises ConfigError for what is no run, or has no
    critic."""
    if plays < 2:
        raise ConfigError(f"plays: is {plays}, must be at least 2")
    if plot is not None:
        _check_plot(plot)
    if page is not None:
        check_output(page)
    runs = list({run.resolve(): run for run in runs}.values())
    configs = [build_config(stored_settings("run", run)) for run in runs]

    for run, config in zip(runs, configs, strict=True):
        if not predicts(config):
            raise ConfigError(f"run: {run} is of {config.algorithm}, must be one that has a critic")
        if checkpoint.newest(run) is None:
            raise ConfigError(f"run: {run} holds no checkpoint yet")

    from dfpo.study.probe.plots import plot_critics, plot_probe  # matplotlib, only to draw

    # Critics of one policy, as docs/critic.md compares them, look on at the same plays.
    reports: dict[str, Any] = {}
    played: dict[str, Replayed] = {}
    for run, config in zip(runs, configs, strict=True):
        setup = set_up(config, run)
        checkpoint.restore(setup)
        key = plays_of(setup)
        if key not in played:
            played[key] = replay(setup, answers, plays)
        probed = probe(setup, played[key])
        told = setup.config.reward
        report = {
            "algorithm": config.algorithm,
            "noise": config.noise,
            "seed": config.seed,
            "states": len(probed.answer),
            "answers": len(probed.domains),
            "plays": plays,
            "scores": critic_scores(probed, told.high - told.low),
        }
        (run / "plots").mkdir(exist_ok=True)
        plot_probe(run / "plots", probed, setup.config)
        write_json(run / "critic.json", report)
        write_scores(run / "critic.html", {str(run): report})
        reports[str(run)] = report

    if plot is not None:
        named = dict(zip(labels(list(reports)), reports.values(), strict=True))
        means = summarise_groups(reports)
        plot_critics(plot, *({k: r["scores"] for k, r in part.items()} for part in (named, means)))

    if page is not None:
        write_scores(page, reports)

    return reports


def write_scores(output: Path, reports: dict[str, Any]) -> None:
    """The page of some critics' scores. Raises ConfigError where it cannot be written."""
    from dfpo.study.page import render_study

    means = summarise_groups(reports)
    named = dict(zip(labels(list(reports)), reports.values(), strict=True))
    named |= {f"{name}: mean": group for name, group in means.items()}
    forest = [
        {
            "arm": name, "panel": key, "noise": column.get("noise", ""), "domain": "",
            "mean": column["scores"][key][0], "thin": column["scores"][key][1:], "thick": [],
            "seeds": [],
        }
        for key in SCORES
        for name, column in named.items()
    ]  # fmt: skip
    data = {
        "about": "dfpo critic",
        "arms": list(named),
        "curves": [],
        "forest": {
            "panels": list(SCORES), "shared": False, "rows": forest,
            "text": "Scores with their 95 % intervals, each on a scale of its own.",
        },
        "tables": [{
            "title": "Scores", "text": "What each score means stands in its last column.",
            "head": ["score", *named, "meaning"],
            "rows": [
                [key, *(_cell(key, column["scores"][key]) for column in named.values()), meaning]
                for key, meaning in SCORES.items()
            ],
        }],
    }  # fmt: skip
    page = render_study(f"DFPO critics: {', '.join(labels(list(reports)))}", data)
    write_page(output, page)


def _check_plot(plot: Path) -> None:
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if plot.suffix[1:].lower() not in known:
        raise ConfigError(f"plot: is {plot}, must end in one of .{', .'.join(known)}")
    if not plot.parent.is_dir():
        raise ConfigError(f"plot: is {plot}, but {plot.parent} is no directory")


def summarise_groups(reports: dict[str, Any]) -> dict[str, Any]:
    """Mean of each score, with Student's interval, over the runs of one algorithm and noise; only
    where there are several."""
    members: dict[tuple[str, str], list[str]] = {}
    for run, report in reports.items():
        members.setdefault((report["algorithm"], report["noise"]), []).append(run)

    return {
        f"{algorithm}, {noise}": {
            "runs": runs,
            "scores": {
                key: _mean([reports[run]["scores"][key][0] for run in runs]) for key in SCORES
            },
        }
        for (algorithm, noise), runs in members.items()
        if len(runs) > 1
    }


def _mean(values: list[float | None]) -> tuple[float | None, float | None, float | None]:
    known = [value for value in values if value is not None]
    if not known:
        return None, None, None
    low, high = student_interval(known)
    return float(np.mean(known)), *(None if math.isnan(x) else x for x in (low, high))


def critic_report(reports: dict[str, Any]) -> str:
    """A table of the scores, a column per run and per group of runs, and what they mean."""
    first = next(iter(reports.values()))
    means = summarise_groups(reports)
    columns = [*reports.values(), *means.values()]
    lines = [[key, *(_cell(key, column["scores"][key]) for column in columns)] for key in SCORES]
    headers = ["score [95 % interval]", *labels(list(reports))]
    headers += [f"{name}: mean of {len(group['runs'])}" for name, group in means.items()]
    sizes = f"{first['states']} states of {first['answers']} answers, {first['plays']} plays each"
    meaning = "\n".join(f"  {key}: {text}" for key, text in SCORES.items())

    return f"{tabulate(lines, headers=headers, disable_numparse=True)}\n{sizes}\n{meaning}"


def to_json(reports: dict[str, Any]) -> str:
    return json.dumps(reports | {"groups": summarise_groups(reports)}, indent=2)


def _cell(key: str, score: tuple[float | None, float | None, float | None]) -> str:
    if None in score:
        return "-"
    digits = 1 if key == "decided" else 3
    value, low, high = (f"{x:.{digits}f}" for x in score)
    return f"{value} [{low}, {high}]"
