"""Parts of the page that need no script: tables and pictures. Every text is escaped."""

from __future__ import annotations

import html
from typing import Any

COLOURS = 7  # --c0 to --c6 of the style; past them lines are dashed


def parts(data: dict[str, Any]) -> dict[str, str]:
    """Place in page.html -> what stands there."""
    runs, settings = data["runs"], data["settings"]
    return {
        "overview": overview(runs, data["overview"]),
        "noise": "\n".join(noise(i, run) for i, run in enumerate(runs)),
        "settings": html_table(
            settings["head"],
            [[html.escape(cell) for cell in row["cells"]] for row in settings["rows"]],
            ["differs" if row["differs"] else "" for row in settings["rows"]],
        ),
        "differing": html.escape(settings["what"]),
        "plots": "\n".join(plot(run["name"], one) for run in runs for one in run["plots"])
        or "None was drawn.",
    }


def overview(runs: list[dict[str, Any]], told: dict[str, Any]) -> str:
    """A row a run, which begins with the switch of its curves."""
    switches = [
        f'<label><input type="checkbox" checked> {swatch(i)}{html.escape(run["name"])}</label>'
        for i, run in enumerate(runs)
    ]
    rows = [
        [switch, *map(html.escape, row)] for switch, row in zip(switches, told["rows"], strict=True)
    ]
    return html_table(["run", *told["head"]], rows)


def noise(i: int, run: dict[str, Any]) -> str:
    """What noise did to the kept answers of the ``i``th run."""
    title = f"<h3>{swatch(i)}{html.escape(run['name'])}: noise {html.escape(run['noise'])}</h3>"
    tables = [
        html_table(one["head"], [list(map(html.escape, row)) for row in one["rows"]])
        for one in run["noise_tables"]
    ]
    return "\n".join([title, *(tables or ['<p class="note">No answers were kept.</p>'])])


def plot(name: str, told: dict[str, str]) -> str:
    """One picture of a run."""
    title, source = html.escape(told["name"]), html.escape(told["source"])
    name = html.escape(name)
    return (
        f'<figure><img src="{source}" alt="{title} of {name}" loading="lazy">'
        f"<figcaption>{name}: {title.replace('_', ' ')}</figcaption></figure>"
    )


def swatch(i: int) -> str:
    """The line that the ``i``th run's curves are drawn with."""
    dashed = "" if i < COLOURS else " dashed"
    return f'<span class="swatch c{i % COLOURS}{dashed}"></span>'


def html_table(head: list[str], rows: list[list[str]], classes: list[str] | None = None) -> str:
    """A table of cells that are markup already, under a head of text."""
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in head)
    lines = [
        f'<tr class="{name}">{"".join(f"<td>{cell}</td>" for cell in row)}</tr>'
        for row, name in zip(rows, classes or [""] * len(rows), strict=True)
    ]
    body = "\n".join(lines)
    return (
        f'<div class="wide"><table><thead><tr>{titles}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )
