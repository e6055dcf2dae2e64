"""Tables of a comparison, in Markdown and LaTeX: levels, paired differences, every benchmark."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from dfpo.study.overview import Overview, interquartile_mean, overviews
from dfpo.study.results import GROUPS, Result, groups, mixed_versions, paired, per_seed
from dfpo.study.statistics import Difference, wilson_interval

MISSING = "–"
NOT_FINITE = "not finite"
EXPLAINED = """\
Mean ± standard deviation over seeds, of the last policy of each run, not the best; {metric} at
temperature 1 on {prompts} with clean rewards. ID, OOD and ALL AVG are plain means over
benchmarks. Collapsed: ALL AVG below half of where the run started, or no longer finite, with
Wilson's 95 % interval. KL: nats per answer from the first policy, last tenth of training."""
SPENT = """\
What each run was given and secondary numbers. Area: clean reward of training answers, mean over all
steps. Length: tokens per answer, last tenth of training. Arms are on one budget where answers and
policy updates agree: critic warm-up spends answers without updating the policy."""
PAIRED = """\
Arm minus {baseline}, seed by seed (same prompts, draws and noise), in points of 100. {intervals}
Above: seeds on which the arm was ahead."""
OVER_NOISES = """\
Each arm with one setting under all noises: final ALL AVG over the {seeds} seeds that every arm has
finished under each, mean over noises ± standard deviation over seeds; interquartile mean of its
runs; its worst noise; the noise in which it is furthest below the best arm there, in points. The
difference is arm minus {baseline} in means over noises, seed by seed, in points; its intervals,
Student's t and the bootstrap, hold for all arms together with 95 % (Bonferroni)."""
INTERVALS = """\
Intervals are 95 %, over seeds: Student's t, then the percentile bootstrap, which is too narrow
below about 20 seeds. Bold where both leave zero; {count} differences have intervals, of which
{chance:.1f} would be bold by chance if no arm differed. Not finite where one side of a pair is."""
NO_INTERVAL = "No difference has an interval: that takes two seeds, all finite."
HELD_OUT = "held-out prompts"
# What a benchmark of the split "train" is on.
TRAINED = "training prompts (no others were given)"
BUDGET = {"answers": "answers", "policy_updates": "policy updates"}


@dataclass(frozen=True)
class Table:
    title: str
    text: str  # what its numbers are
    headers: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Markup:
    """How a number's decorations are written."""

    pm: str
    minus: str
    missing: str
    bold: Callable[[str], str]
    escape: Callable[[str], str]


def _escape_latex(text: str) -> str:
    return "".join(f"\\{c}" if c in "&%$#_{}" else c for c in text)


MARKDOWN = Markup(" ± ", "-", MISSING, lambda s: f"**{s}**", lambda s: s.replace("|", "\\|"))
LATEX = Markup(r" $\pm$ ", "$-$", "--", lambda s: rf"\textbf{{{s}}}", _escape_latex)


def write_tables(output: Path, results: list[Result], baseline: str, command: str) -> None:
    """table.md and table.tex of the results, in the order of the grid."""
    ran = mixed_versions(results) or f"{len(results)} runs, dfpo {results[0]['version']}."
    heading = f"`{command}`\n\n{ran}"
    text = markdown(tables(results, baseline, MARKDOWN))
    (output / "table.md").write_text(f"# Comparison\n\n{heading}\n\n{text}", encoding="utf-8")
    (output / "table.tex").write_text(
        latex(tables(results, baseline, LATEX), f"{command}: {ran}"), encoding="utf-8"
    )


def headlines(results: list[Result], baseline: str) -> str:
    """What a terminal shows."""
    return markdown(summaries(results, baseline, MARKDOWN))


def markdown(several: list[Table]) -> str:
    return "\n".join(
        f"## {table.title}\n\n{table.text}\n\n"
        + tabulate(table.rows, table.headers, tablefmt="pipe", disable_numparse=True)
        + "\n"
        for table in several
    )


def latex(several: list[Table], heading: str) -> str:
    """Tables to \\input; they need the package booktabs."""
    parts = [f"% {heading}"]
    for table in several:
        caption = " ".join(LATEX.escape(f"{table.title}. {table.text}").split())
        caption = caption.replace("±", r"$\pm$")
        parts += [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
        parts.append(rf"\begin{{tabular}}{{{'l' * len(table.headers)}}}")
        parts += [r"\toprule", " & ".join(map(LATEX.escape, table.headers)) + r" \\", r"\midrule"]
        parts += [" & ".join(row) + r" \\" for row in table.rows]
        parts += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]

    return "\n".join(parts)


def tables(results: list[Result], baseline: str, markup: Markup) -> list[Table]:
    """Those that have something to say; a grid may evaluate nothing."""
    made = [*summaries(results, baseline, markup), budgets(results, markup)]
    return [*made, benchmarks(results, markup)] if any(r["benchmarks"] for r in results) else made


def summaries(results: list[Result], baseline: str, markup: Markup) -> list[Table]:
    """Levels and differences."""
    every = overviews(results, baseline)
    made = [over_noises(every, baseline, markup)] if every else []
    made.append(levels(results, markup))
    if paired(results, baseline):
        made.append(differences(results, baseline, markup))
    return made


def over_noises(every: list[Overview], baseline: str, markup: Markup) -> Table:
    rows = []
    for one in every:
        (low, worst), (gap, where) = one.worst, one.behind
        row = [
            *map(markup.escape, (one.domain, one.arm)),
            spread(one.means.tolist(), markup, 3),
            _number(interquartile_mean(one.scores), 3, markup),
            f"{_number(low, 3, markup)} {markup.escape(worst)}",
            f"{_points(-gap, markup)} {markup.escape(where)}" if gap > 0 else "best in all",
            f"{one.collapsed}/{one.scores.size}",
        ]
        rows.append(row + _difference(one.difference, markup))

    headers = [
        "domain", "arm", "mean", "IQM", "worst", "furthest behind", "collapsed", "difference", "t",
        "bootstrap", "above",
    ]  # fmt: skip
    text = OVER_NOISES.format(seeds=len(every[0].scores), baseline=baseline)
    return Table("Over all noises", text, headers, rows)


def levels(results: list[Result], markup: Markup) -> Table:
    rows = []
    for key, runs in groups(results).items():
        row = [*map(markup.escape, key), str(len(runs))]
        row += [spread(list(per_seed(runs, group).values()), markup, 3) for group in GROUPS]
        low, high = wilson_interval(fallen := sum(r["collapsed"] for r in runs), len(runs))
        row.append(f"{fallen}/{len(runs)} [{low:.2f}, {high:.2f}]")
        rows.append([*row, spread([r["kl"] for r in runs], markup, 2)])

    headers = ["domain", "noise", "arm", "seeds", *GROUPS.values(), "collapsed", "KL"]
    text = EXPLAINED.format(metric=results[0]["metric"], prompts=evaluated_on(results))
    return Table("Levels", text, headers, rows)


def evaluated_on(results: list[Result]) -> str:
    """What kind of prompts the benchmarks hold."""
    trained = {name.endswith("/train") for r in results for name in r["benchmarks"]}
    if trained == {True}:
        return TRAINED
    return f"{HELD_OUT} or, in /train, {TRAINED}" if True in trained else HELD_OUT


def budgets(results: list[Result], markup: Markup) -> Table:
    """What every arm was given, and secondary numbers."""
    rows = []
    for key, runs in groups(results).items():
        row = [*map(markup.escape, key)]
        row.append(spread(list(per_seed(runs, "all_greedy").values()), markup, 3))
        for name, digits in (("training_reward_area", 3), ("response_length", 1)):
            row.append(spread([r[name] for r in runs], markup, digits))
        row += [
            f"{np.mean([r[name] for r in runs]):.0f}"
            for name in ("answers", "tokens", "policy_updates")
        ]
        rows.append(row)

    headers = [
        "domain", "noise", "arm", "ALL AVG greedy", "area", "length", "answers", "tokens",
        "policy updates",
    ]  # fmt: skip
    return Table("Training", SPENT, headers, rows)


def differences(results: list[Result], baseline: str, markup: Markup) -> Table:
    rows, count = [], 0
    for (domain, noise, arm), group, gap in paired(results, baseline):
        names = map(markup.escape, (domain, noise, arm))
        rows.append([*names, GROUPS[group], *_difference(gap, markup)])
        count += math.isfinite(gap.student[0])

    headers = ["domain", "noise", "arm", "over", "difference", "t", "bootstrap", "above"]
    said = INTERVALS.format(count=count, chance=0.05 * count) if count else NO_INTERVAL
    text = PAIRED.format(baseline=baseline, intervals=said)
    unlike = unlike_budgets(results, baseline)
    if unlike:
        text += f"\n\nNot on the budget of {baseline}: {unlike}."

    return Table(f"Differences to {baseline}", text, headers, rows)


def _difference(gap: Difference | None, markup: Markup) -> list[str]:
    """Mean, bold where both intervals leave zero, the intervals, and seeds above."""
    if gap is None:
        return [markup.missing] * 4
    broken = gap.seeds and not math.isfinite(gap.mean)
    text = NOT_FINITE if broken else _points(gap.mean, markup)
    sure = all(low > 0 or high < 0 for low, high in (gap.student, gap.bootstrap))
    return [
        markup.bold(text) if sure else text,
        _interval(gap.student, markup), _interval(gap.bootstrap, markup),
        f"{gap.above}/{gap.seeds}",
    ]  # fmt: skip


def unlike_budgets(results: list[Result], baseline: str) -> str:
    """Arms that somewhere had more or fewer answers or policy updates than the baseline."""
    every = groups(results)
    unlike: dict[str, list[str]] = {}
    for key, runs in every.items():
        against = every.get((*key[:2], baseline), runs)
        for name, words in BUDGET.items():
            ours, theirs = (np.mean([r[name] for r in each]) for each in (runs, against))
            if ours != theirs and words not in unlike.setdefault(key[2], []):
                unlike[key[2]].append(words)

    return "; ".join(f"{arm} ({', '.join(words)})" for arm, words in unlike.items() if words)


def benchmarks(results: list[Result], markup: Markup) -> Table:
    names = list(dict.fromkeys(name for r in results for name in r["benchmarks"]))
    rows = []
    for key, runs in groups(results).items():
        scored = [r["benchmarks"] for r in runs]
        cells = [
            spread([b[name]["after"] for b in scored if name in b], markup, 3) for name in names
        ]
        rows.append([*map(markup.escape, key), *cells])

    # All runs of a domain start from one policy on one set of prompts.
    firsts: dict[str, dict[str, Any]] = {}
    for result in results:
        firsts.setdefault(result["domain"], result["benchmarks"])

    starts = [
        [markup.escape(domain), "", "first policy"]
        + [_number(first[n]["before"] if n in first else None, 3, markup) for n in names]
        for domain, first in firsts.items()
    ]
    rows = starts + rows
    prompts = "; ".join(
        f"{domain}: " + (", ".join(f"{n} {b['prompts']}" for n, b in first.items()) or "none")
        for domain, first in firsts.items()
    )
    text = f"As above, one column a benchmark. Prompts of {prompts}."

    return Table("Benchmarks", text, ["domain", "noise", "arm", *names], rows)


def spread(values: list[float | None], markup: Markup, digits: int) -> str:
    """mean ± standard deviation of values, the latter where there are two."""
    if not values or any(v is None or not math.isfinite(v) for v in values):
        return markup.missing if not values else NOT_FINITE
    mean = _number(float(np.mean(values)), digits, markup)
    if len(values) < 2:
        return mean
    return f"{mean}{markup.pm}{float(np.std(values, ddof=1)):.{digits}f}"


def _number(value: float | None, digits: int, markup: Markup) -> str:
    if value is None or not math.isfinite(value):
        return markup.missing
    return f"{value:.{digits}f}".replace("-", markup.minus)


def _points(value: float, markup: Markup) -> str:
    return f"{'+' if value > 0 else ''}{_number(100 * value, 1, markup)}"


def _interval(bounds: tuple[float, float], markup: Markup) -> str:
    if not all(map(math.isfinite, bounds)):
        return markup.missing
    return f"[{', '.join(_points(x, markup) for x in bounds)}]"
