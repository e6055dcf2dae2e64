"""What the page shows of each run, as plain values that JSON can say, in a budget of letters."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dfpo.config import Config, ConfigError, build_config, stored_settings
from dfpo.config.build import flatten
from dfpo.run.kept import MOST_TOKENS, KeptAnswer, kept_steps, middle_of, read_kept
from dfpo.run.listing import describe
from dfpo.run.records import labels, read_metrics

# Letters of the page, of all runs together; page.LARGEST is what they have to stay below.
FOR_CURVES, FOR_ANSWERS, FOR_PLOTS = 1_200_000, 3_600_000, 2_400_000
MOST_POINTS, FEWEST_POINTS = 2000, 20  # of one curve
MISSING = 65535  # a quantile that is not finite
NO_PLACE = ("name", "runs_dir")  # settings that say where a run is, not what


def gather(runs: list[Path]) -> dict[str, Any]:
    """All that the page shows. Raises ConfigError for what is no run."""
    runs = list({run.resolve(): run for run in runs}.values())
    configs = [build_config(stored_settings("run", run)) for run in runs]
    names = labels([str(run) for run in runs])
    described = [
        describe_run(run, config, name, len(runs))
        for run, config, name in zip(runs, configs, names, strict=True)
    ]
    return {"runs": described}


def describe_run(run: Path, config: Config, name: str, count: int) -> dict[str, Any]:
    """One of ``count`` runs, which share the page's budget evenly."""
    listed, metrics = describe(run, run), read_metrics(run)
    summary = _read_json(run / "summary.json")
    steps, answers = fit_answers(run, config, FOR_ANSWERS // count)
    x, curves, per_point = fit_curves(metrics, FOR_CURVES // count)

    return {
        "name": name,
        "algorithm": config.algorithm,
        "noise": config.noise,
        "seed": config.seed,
        "state": listed.state,
        "done": listed.step,
        "steps": config.steps,
        "low": config.reward.low,
        "high": config.reward.high,
        "before": summary.get("before"),
        "after": summary.get("after"),
        "x": x,
        "curves": curves,
        "per_point": per_point,
        "answers": answers,
        "kept_steps": len(kept_steps(run)),
        "shown_steps": steps,
        "settings": settings_of(config),
        "defaults": settings_of(build_config({"algorithm": config.algorithm})),
        "plots": fit_plots(run, FOR_PLOTS // count),
    }


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


def fit_answers(run: Path, config: Config, letters: int) -> tuple[int, list[dict[str, Any]]]:
    """(steps, answers): those of every kept step, or of evenly fewer where they need more room, in
    the end of one step with fewer answers. The last kept step is always among them."""
    steps = kept_steps(run)
    packed = {step: [pack(kept, config) for kept in read_kept(run, step)] for step in steps}
    sizes = {step: [len(json.dumps(one)) for one in packed[step]] for step in steps}

    while len(steps) > 1 and sum(sum(sizes[step]) for step in steps) > letters:
        steps = steps[::-2][::-1]
    if len(steps) == 1:
        total = np.cumsum(sizes[steps[0]])
        packed[steps[0]] = packed[steps[0]][: int((total <= letters).sum())]

    return len(steps), [one for step in steps for one in packed[step]]


def pack(kept: KeptAnswer, config: Config) -> dict[str, Any]:
    """One answer as the page wants it, its quantiles as 16-bit integers."""
    numbers = {
        name: [_short(value, 4) for value in getattr(kept, name)]
        for name in ("values", "spreads", "advantages")
    }
    return {
        "step": kept.step,
        "sample": kept.sample,
        "domain": kept.domain,
        "prompt": kept.prompt,
        "expected": kept.expected,
        "answer": kept.answer,
        "truncated": kept.truncated,
        "told": _short(kept.told),
        "clean": _short(kept.clean),
        "right": kept.is_right(middle_of(config)),
        "tokens": kept.tokens,
        "cut": len(kept.tokens) == MOST_TOKENS,
        **numbers,
        "packed": pack_quantiles([*kept.quantiles, kept.final] if kept.final else []),
    }


def pack_quantiles(rows: list[list[float]]) -> dict[str, Any]:
    """A row a token, the last one after the answer, between the least and the greatest."""
    values = np.array(rows, dtype=np.float64)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    shares = (values - low) / ((high - low) or 1.0)
    whole = np.where(np.isfinite(shares), np.rint(shares * (MISSING - 1)), MISSING)
    return {
        "low": low,
        "high": high,
        "width": len(rows[0]) if rows else 0,
        "bytes": base64.b64encode(whole.astype("<u2").tobytes()).decode(),
    }


def settings_of(config: Config) -> dict[str, str]:
    """Dotted name -> value in words."""
    tree: Mapping[str, Any] = dataclasses.asdict(config)
    return {
        name: ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        for name, value in flatten(tree)
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
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ConfigError(f"run: cannot read {path}: {error}") from None
