"""What the page shows of each run, as plain values that JSON can say, in a budget of bytes."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dfpo.config import Config, ConfigError, build_config, stored_settings
from dfpo.config.build import flatten
from dfpo.run.kept import (
    MOST_TOKENS,
    NO_REWARD,
    KeptAnswer,
    kept_steps,
    read_kept,
    reward_range,
    reward_text,
)
from dfpo.run.listing import summarise
from dfpo.run.records import labels, read_metrics

# Bytes of the page, of all runs together; page.LARGEST is what they have to stay below.
FOR_CURVES, FOR_ANSWERS, FOR_PLOTS = 1_200_000, 3_600_000, 2_400_000
MOST_POINTS, FEWEST_POINTS = 2000, 20  # of one curve
MISSING = 65535  # a quantile that is not finite
FIRST = ("reward/", "accuracy/", "domain/", "value/", "kl", "advantage/", "loss/")  # metrics
SIGNED = ("changes", "advantages")
COLOURINGS = ("values", "spreads", *SIGNED)  # of an answer's tokens
MARKS = {"right": "✓ ", "wrong": "✗ ", NO_REWARD: ""}
MOST_PAIRS = 12  # rewards before and after noise that are listed one by one
# What could end the data's element or a line of script.
ESCAPED = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
NO_PLACE = ("name", "runs_dir")  # settings that say where a run is, not what


def embed(data: Any) -> str:
    """JSON in which no text can be markup."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.translate(str.maketrans(ESCAPED))


def gather(runs: list[Path]) -> dict[str, Any]:
    """All that the page shows. Raises ConfigError for what is no run."""
    runs = list({run.resolve(): run for run in runs}.values())
    configs = [build_config(stored_settings("run", run)) for run in runs]
    names = labels([str(run) for run in runs])
    described = [
        describe_run(run, config, name, len(runs))
        for run, config, name in zip(runs, configs, names, strict=True)
    ]
    return {
        "runs": described,
        "metrics": metric_names(described),
        "bounds": {name: bounds_of(name, described) for name in COLOURINGS},
        "notes": notes(described),
        "overview": overview(described),
        "settings": settings_table(configs, names),
    }


def describe_run(run: Path, config: Config, name: str, count: int) -> dict[str, Any]:
    """One of ``count`` runs, which share the page's budget evenly."""
    listed, metrics = summarise(run, run), read_metrics(run)
    kept = read_all_kept(run)
    steps, answers = fit_answers(kept, reward_range(config), FOR_ANSWERS // count)
    x, curves, per_point = fit_curves(metrics, FOR_CURVES // count)

    return {
        "name": name,
        "algorithm": config.algorithm,
        "noise": config.noise,
        "seed": config.seed,
        "state": listed.state,
        "done": listed.step,
        "steps": config.steps,
        "scores": scores_of(_read_json(run / "summary.json")),
        "x": x,
        "curves": curves,
        "per_point": per_point,
        "answers": answers,
        "kept_steps": len(kept),
        "shown_steps": steps,
        "noise_tables": noise_tables([one for step in kept.values() for one in step]),
        "plots": fit_plots(run, FOR_PLOTS // count),
    }


def read_all_kept(run: Path) -> dict[int, list[KeptAnswer]]:
    """Step -> answers. A run at work may thin them out meanwhile."""
    kept = {}
    for step in kept_steps(run):
        try:
            kept[step] = read_kept(run, step)
        except ConfigError:
            if step in kept_steps(run):
                raise
    return kept


def fit_curves(
    metrics: list[dict[str, Any]], letters: int
) -> tuple[list[int], dict[str, list[float | None]], int]:
    """(steps, metric -> values, steps per point): where there are more steps than there is room,
    each point is the mean of some."""
    names = sorted({key for record in metrics for key in record} - {"step"})
    room = letters // (9 * max(1, len(names)))
    most = min(MOST_POINTS, max(FEWEST_POINTS, room))
    each = max(1, math.ceil(len(metrics) / most))
    parts = [metrics[i : i + each] for i in range(0, len(metrics), each)]
    curves = {name: [_mean([m.get(name) for m in part]) for part in parts] for name in names}
    return [part[-1]["step"] for part in parts], curves, each


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _short(sum(known) / len(known)) if known else None


def _short(value: float, digits: int = 5) -> float | None:
    """In few digits; None where it is not finite."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def fit_answers(
    kept: dict[int, list[KeptAnswer]], rewards: tuple[float, float], letters: int
) -> tuple[int, list[dict[str, Any]]]:
    """(steps, answers): those of every kept step, or of evenly fewer where they need more room, in
    the end of one step with fewer answers. The last kept step is always among them."""
    steps = list(kept)
    packed = {step: [pack(one, rewards) for one in kept[step]] for step in steps}
    sizes = {step: [len(embed(one).encode()) for one in packed[step]] for step in steps}

    while len(steps) > 1 and sum(sum(sizes[step]) for step in steps) > letters:
        steps = steps[::-2][::-1]
    if len(steps) == 1:
        total = np.cumsum(sizes[steps[0]])
        packed[steps[0]] = packed[steps[0]][: int((total <= letters).sum())]

    return len(steps), [one for step in steps for one in packed[step]]


def pack(kept: KeptAnswer, rewards: tuple[float, float]) -> dict[str, Any]:
    """One answer as the page wants it, its quantiles as 16-bit integers."""
    verdict = kept.verdict(sum(rewards) / 2)
    lists = {name: [_short(value, 4) for value in getattr(kept, name)] for name in COLOURINGS}
    return {
        "step": kept.step,
        "sample": kept.sample,
        "domain": kept.domain,
        "prompt": kept.prompt,
        "expected": kept.expected,
        "answer": kept.answer,
        "truncated": kept.truncated,
        "told": kept.told if kept.told is None else _short(kept.told),
        "clean": kept.clean if kept.clean is None else _short(kept.clean),
        "verdict": verdict,
        "noise": "changed by noise" if kept.noisy else "as it was",
        "words": MARKS[verdict] + kept.words(sum(rewards) / 2),
        "tokens": kept.tokens,
        "cut": len(kept.tokens) == MOST_TOKENS,
        **lists,
        "packed": pack_quantiles(kept.quantiles, rewards),
    }


def pack_quantiles(rows: list[list[float]], rewards: tuple[float, float]) -> dict[str, Any]:
    """A row a token, between ends that hold the rewards' range and all of them."""
    values = np.array(rows, dtype=np.float64)
    ends = [*rewards, *values[np.isfinite(values)]]
    low, high = float(min(ends)), float(max(ends))
    shares = (values - low) / ((high - low) or 1.0)
    whole = np.where(np.isfinite(shares), np.rint(shares * (MISSING - 1)), MISSING)
    return {
        "low": low,
        "high": high,
        "width": len(rows[0]) if rows else 0,
        "bytes": base64.b64encode(whole.astype("<u2").tobytes()).decode(),
    }


def metric_names(runs: list[dict[str, Any]]) -> list[str]:
    """Of all runs, those first that are looked at first, the machine's last."""
    known = list(dict.fromkeys(name for run in runs for name in run["curves"]))

    def rank(name: str) -> int:
        leading = [place for place, prefix in enumerate(FIRST) if name.startswith(prefix)]
        return min(leading, default=len(FIRST) + name.startswith("perf/"))

    return sorted(known, key=rank)


def bounds_of(name: str, runs: list[dict[str, Any]]) -> tuple[float, float]:
    """Least and greatest value of a colouring over all answers, so that colours compare; of one
    with a sign as far below 0 as above. A hundredth on either side is left out."""
    values = [x for run in runs for one in run["answers"] for x in one[name] if x is not None]
    if not values:
        return 0.0, 0.0
    low, high = map(float, np.quantile(values, (0.01, 0.99), method="nearest"))
    most = max(abs(low), abs(high))
    return (-most, most) if name in SIGNED else (low, high)


def notes(runs: list[dict[str, Any]]) -> dict[str, str]:
    """What the page has no room for, of curves and of answers."""
    means = [
        f"; each point of {run['name']} is the mean of {run['per_point']} steps"
        for run in runs if run["per_point"] > 1
    ]  # fmt: skip
    left = [
        f"{run['shown_steps']} of {run['kept_steps']} kept steps of {run['name']}"
        for run in runs if run["shown_steps"] < run["kept_steps"]
    ]  # fmt: skip
    room = f"; the page has room for {', '.join(left)}" if left else ""
    return {"curves": "".join(means), "answers": room}


def overview(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Head and rows of the table of runs."""
    scored = list(dict.fromkeys(name for run in runs for name in run["scores"]))
    head = ["algorithm", "noise", "seed", "state", "steps"]
    rows = [
        [
            run["algorithm"], run["noise"], str(run["seed"]), run["state"],
            f"{run['done']} of {run['steps']}", *(run["scores"].get(name, "-") for name in scored),
        ]
        for run in runs
    ]  # fmt: skip
    return {"head": [*head, *scored], "rows": rows}


def scores_of(summary: dict[str, Any]) -> dict[str, str]:
    """Which mean -> its value before and after training, as summary.json has them."""
    before, after = summary.get("before") or {}, summary.get("after") or {}
    return {
        f"{name.replace('_', ', ')}: before, after": f"{before[name]:.3f}, {after[name]:.3f}"
        for name in after
        if not name.endswith("_se") and None not in (before.get(name), after[name])
    }


def noise_tables(kept: list[KeptAnswer]) -> list[dict[str, Any]]:
    """What noise did to the rewards of kept answers: by domain, and reward by reward where there
    are few, else how far it moved them."""
    if not kept:
        return []
    domains = list(dict.fromkeys(one.domain for one in kept))
    groups = [("all", kept)]
    groups += [(name, [one for one in kept if one.domain == name]) for name in domains]
    head = ["kept answers", "count", "changed by noise", "mean clean", "mean told"]
    by_domain = [
        [
            name, str(len(group)), _share(sum(one.noisy for one in group), len(group)),
            _mean_reward([one.clean for one in group]), _mean_reward([one.told for one in group]),
        ]
        for name, group in groups
    ]  # fmt: skip

    return [{"head": head, "rows": by_domain}, _moved(kept)]


def _mean_reward(rewards: list[float | None]) -> str:
    known = [reward for reward in rewards if reward is not None]
    return f"{np.mean(known):.3f}" if known else "-"


def _moved(kept: list[KeptAnswer]) -> dict[str, Any]:
    pairs = Counter((one.clean, one.told) for one in kept)
    changes = [one.told - one.clean for one in kept if None not in (one.told, one.clean)]
    if len(pairs) <= MOST_PAIRS or not changes:
        in_order = sorted(pairs.items(), key=lambda item: [(x is None, x) for x in item[0]])
        rows = [
            [reward_text(clean), reward_text(told), _share(count, len(kept))]
            for (clean, told), count in in_order[:MOST_PAIRS]
        ]
        return {"head": ["clean reward", "told reward", "answers"], "rows": rows}

    levels = (0, 5, 25, 50, 75, 95, 100)
    head = ["share of answers", *(f"{level} %" for level in levels)]
    below = [f"{x:.4g}" for x in np.percentile(changes, levels)]
    return {"head": head, "rows": [["told less clean below", *below]]}


def _share(count: int, total: int) -> str:
    return f"{count} ({100 * count / total:.0f} %)"


def settings_table(configs: list[Config], names: list[str]) -> dict[str, Any]:
    """Every setting of every run; of one run beside what its algorithm has by default."""
    columns = [settings_of(config) for config in configs]
    head = ["setting", *names]
    what = "only what differs between the runs"
    if len(configs) == 1:
        columns.append(settings_of(build_config({"algorithm": configs[0].algorithm})))
        head.append("default")
        what = "only what is not the algorithm's default"
    rows = []
    for name in columns[0]:
        values = [column[name] for column in columns]
        rows.append({"cells": [name, *values], "differs": len(set(values)) > 1})
    return {"head": head, "rows": rows, "what": what}


def settings_of(config: Config) -> dict[str, str]:
    """Dotted name -> value in words."""
    return {
        name: ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        for name, value in flatten(dataclasses.asdict(config))
        if name not in NO_PLACE
    }


def fit_plots(run: Path, letters: int) -> list[dict[str, str]]:
    """The run's pictures, the smallest first, as far as there is room."""
    plots = []
    for path in sorted((run / "plots").glob("*.png"), key=lambda path: path.stat().st_size):
        source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
        letters -= len(source)
        if letters >= 0:
            plots.append({"name": path.stem, "source": source})
    return plots


def _read_json(path: Path) -> dict[str, Any]:
    """Empty where there is none yet. Raises ConfigError where it is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise ConfigError(f"run: cannot read {path}: {error}") from None
