"""Draws the last two regimes of recipes/verdict.yaml from the family of noises.

Each domain has a source of rewards of its own: a scale, an offset, and one kind of error. Prints
the noise of each regime. The seed is the day on which everything else had been fixed.
"""

from random import Random

DOMAINS = ("math", "science", "dialogue")
KINDS = {
    "flip": lambda draw: draw.uniform(0.05, 0.35),
    "outliers": lambda draw: draw.uniform(0.02, 0.2),
    "heavy": lambda draw: 10 ** draw.uniform(-1, 0.5),
    "normal": lambda draw: 10 ** draw.uniform(-1, 0.5),
}


def regime(draw: Random) -> str:
    parts = []
    for domain in DOMAINS:
        scale, offset = 10 ** draw.uniform(-1.3, 1.3), draw.uniform(-5, 5)
        kind = draw.choice(sorted(KINDS))
        level = KINDS[kind](draw)
        parts.append(f"{domain}:scale={scale:.2g},offset={offset:.2g},{kind}={level:.2g}")
    return ";".join(parts)


if __name__ == "__main__":
    draw = Random(20261130)
    for name in ("drawn-1", "drawn-2"):
        print(f"{name}: {regime(draw)}")
