"""Data, script and style in one HTML file."""

from __future__ import annotations

import base64
import hashlib
import html
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from dfpo.config import ConfigError
from dfpo.run.records import replace_text
from dfpo.run.report.data import embed, gather
from dfpo.run.report.markup import parts

NAME = "report.html"
LARGEST = 8_000_000  # bytes of a page
# One after the other, in one element.
SCRIPTS = ("uPlot.iife.min.js", "elements.js", "curves.js", "answers.js", "report.js")
STYLES = ("uPlot.min.css", "report.css")
DRAWN = ("name", "x", "curves", "answers")  # what the script knows of a run


def write_report(runs: list[Path], output: Path) -> Path:
    """Writes the page of some runs. Raises ConfigError for what is no run, and where the page
    would be too large or cannot be written."""
    check_output(output)
    write_page(output, render(gather(runs)))
    return output


def check_output(output: Path) -> None:
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigError(f"output: is {output}, must be a file in a directory that exists")


def write_page(output: Path, page: str) -> None:
    """Raises ConfigError where it would be too large."""
    size = len(page.encode())
    if size > LARGEST:
        raise ConfigError(
            f"runs: make a page of {size / 1e6:.1f} MB, must be at most {LARGEST / 1e6:.0f} MB: "
            "give fewer"
        )
    replace_text(output, page)


def render(data: dict[str, Any]) -> str:
    """The page of some runs: what a script draws as data, the rest as markup."""
    names = [run["name"] for run in data["runs"]]
    scripts = [read_asset(__package__, name) for name in SCRIPTS]
    body = Template(read_asset(__package__, "page.html")).substitute(parts(data))
    drawn = {name: value for name, value in data.items() if name not in ("overview", "settings")}
    drawn["runs"] = [{name: run[name] for name in DRAWN} for run in data["runs"]]
    return assemble(body, scripts, f"DFPO: {', '.join(names)}", drawn)


def assemble(body: str, scripts: list[str], title: str, data: dict[str, Any]) -> str:
    """A whole page: the frame and style that all pages share, around a page's own navigation and
    sections; scripts in one element; the data."""
    script = "\n".join(scripts)
    style = "\n".join(read_asset(__package__, name) for name in STYLES)
    return Template(read_asset(__package__, "frame.html")).substitute(
        body=body,
        policy=policy(script, style),
        title=html.escape(title),
        style=style,
        script=script,
        data=embed(data),
        made=f"Made by dfpo {html.escape(metadata.version('dfpo'))}; curves drawn by uPlot (MIT).",
    )


def policy(script: str, style: str) -> str:
    """What the browser may run and load: this script, this style, embedded pictures."""
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def read_asset(package: str, name: str) -> str:
    return (files(package) / "assets" / name).read_text(encoding="utf-8")
