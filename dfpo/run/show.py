"""``dfpo show``: a run's kept answers in the terminal."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from dfpo.config import Config, ConfigError, build_config, stored_settings
from dfpo.run.kept import KeptAnswer, kept_steps, middle_of, read_kept, reward_range

# Five of the colours of cividis, which grows in lightness for every eye, from low to high.
CIVIDIS = ((0, 32, 76), (65, 77, 107), (124, 123, 120), (187, 173, 108), (255, 233, 69))


def show(
    run: Path,
    *,
    step: int | None = None,
    domain: str | None = None,
    right: bool | None = None,
    most: int = 10,
) -> str:
    """At most ``most`` kept answers of a step, the last kept one by default, that are of the
    domain and right or wrong as asked for. Raises ConfigError where there are none."""
    config = build_config(stored_settings("run", run))
    kept = read_kept(run, which_step(run, step))
    middle = middle_of(config)
    verdict = None if right is None else "right" if right else "wrong"
    domains = list(dict.fromkeys(answer.domain for answer in kept))
    if domain is not None and domain not in domains:
        raise ConfigError(f"domain: is {domain!r}, must be one of {', '.join(domains)}")

    chosen = [
        answer
        for answer in kept
        if domain in (None, answer.domain) and verdict in (None, answer.verdict(middle))
    ]
    coloured = wants_colour()
    shown = [as_text(answer, config, coloured) for answer in chosen[:most]]
    count = f"{len(shown)} of {len(chosen)} answers" if len(shown) < len(chosen) else None
    closing = [f"{count}; --most {len(chosen)} shows all"] if count else []
    if not chosen:
        closing = [f"none of the {len(kept)} kept answers is what was asked for"]
    return "\n\n".join([*shown, *closing])


def which_step(run: Path, step: int | None) -> int:
    """The step that is asked for, or the last kept one."""
    steps = kept_steps(run)
    if not steps:
        raise ConfigError(f"run: {run} kept no answers, must be of --answers-every 1 or more")
    if step is None:
        return steps[-1]
    if step not in steps:
        raise ConfigError(
            f"step: is {step}, must be one whose answers were kept: {', '.join(map(str, steps))}"
        )
    return step


def wants_colour() -> bool:
    """On a terminal, unless the user says otherwise (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.getenv("TERM") != "dumb"


def as_text(answer: KeptAnswer, config: Config, coloured: bool) -> str:
    """One answer, in a few lines."""
    words = answer.words(middle_of(config)) + (": changed by noise" if answer.noisy else "")
    lines = [f"step {answer.step}, {printable(answer.domain)}, {words}"]
    lines.append(f"  prompt    {printable(answer.prompt)}")
    if answer.expected is not None:
        lines.append(f"  expected  {printable(answer.expected)}")

    text = printable(answer.answer)
    if coloured and answer.values:
        text = coloured_tokens(answer, config)
    lines.append(f"  answer    {text}{' [cut off]' if answer.truncated else ''}")
    if answer.values:
        lines.append(f"  value     {value_line(answer)}")
    return "\n".join(lines)


def coloured_tokens(answer: KeptAnswer, config: Config) -> str:
    """Each token on the colour of the value predicted before it: blue is low, yellow high."""
    low, high = reward_range(config)
    shares = np.clip((np.array(answer.values) - low) / ((high - low) or 1.0), 0.0, 1.0)
    words = []
    for token, share in zip(answer.tokens, np.nan_to_num(shares, nan=0.5), strict=True):
        r, g, b = colour_at(float(share))
        ink = "97" if 0.3 * r + 0.59 * g + 0.11 * b < 110 else "30"
        words.append(f"\x1b[{ink};48;2;{r};{g};{b}m{printable(token) or ' '}\x1b[0m")
    return " ".join(words)


def colour_at(share: float) -> tuple[int, int, int]:
    """Of CIVIDIS, with straight lines between its colours."""
    place = share * (len(CIVIDIS) - 1)
    points = range(len(CIVIDIS))
    r, g, b = (round(float(np.interp(place, points, c))) for c in zip(*CIVIDIS, strict=True))
    return r, g, b


def value_line(answer: KeptAnswer) -> str:
    """Where the predicted value begins and ends, and the token at which it moves most."""
    first, changes = answer.values[0], np.array(answer.changes)
    most = int(np.argmax(np.abs(np.nan_to_num(changes))))
    last = first + changes.sum()
    return (
        f"{first:.3g} before the first token, {last:.3g} after the last; moves most, "
        f"{changes[most]:+.3g}, at token {most + 1}, {printable(answer.tokens[most])!r}"
    )


def printable(text: str) -> str:
    """In one line, in which nothing steers the terminal."""
    line = " / ".join(part for part in text.splitlines() if part.strip())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
