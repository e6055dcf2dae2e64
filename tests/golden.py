"""Is a refactoring silent? Runs a base commit and this tree side by side and compares every bit.

    make golden BASE=COMMIT      (python tests/golden.py COMMIT [ALGORITHM ...])

Each side trains five steps of each algorithm from the same seed and plays on from the states of
one run's critic. Three things must be equal: ``metrics.jsonl`` without its ``perf/`` keys,
``critic.json``, and the docstrings of the public API. Bits depend on processor and torch, so both
sides run here and now. Ends with status 1 where anything differs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ALGORITHMS = ("dfpo", "dfpo-rank", "dfpo-paper", "ppo", "grpo", "flowrl", "dvpo")
# Without a critic there is no warm-up to shorten.
CRITIC_FREE = ("grpo", "flowrl")
SMALL = ["--steps", "5", "--noise", "flip=0.2", "--eval.prompts", "8", "--plots", "false"]
DOCSTRINGS = (
    "import inspect, json, dfpo_kernels as k, dfpo_kernels.nn as nn;"
    "print(json.dumps({m.__name__ + '.' + n: inspect.getdoc(getattr(m, n))"
    " for m in (k, nn) for n in sorted(getattr(m, '__all__', ()))}))"
)


def run(tree: Path, *command: str) -> str:
    """A Python command in a source tree; ``-m`` puts the tree first on the path."""
    result = subprocess.run(
        [sys.executable, *command], cwd=tree, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SystemExit(f"{tree}: {' '.join(command)} failed:\n{result.stderr[-3000:]}")
    return result.stdout


def record(tree: Path, runs: Path, algorithms: tuple[str, ...]) -> dict[str, list]:
    """What one tree computes: name -> rows."""
    kept: dict[str, list] = {"docstrings": sorted(json.loads(run(tree, "-c", DOCSTRINGS)).items())}

    for name in algorithms:
        warmup = [] if name in CRITIC_FREE else ["--critic.warmup-steps", "2"]
        run(
            tree, "-m", "dfpo", "train", "--algorithm", name, "--name", name,
            "--runs-dir", str(runs), *SMALL, *warmup,
        )  # fmt: skip
        lines = (runs / name / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        kept[name] = [
            {key: value for key, value in row.items() if not key.startswith("perf/")}
            for row in rows
        ]

    probed = runs / algorithms[0]
    run(tree, "-m", "dfpo", "critic", str(probed), "--answers", "1", "--plays", "4")
    kept["critic"] = [json.loads((probed / "critic.json").read_text())]
    return kept


def differences(old: dict[str, list], new: dict[str, list]) -> list[str]:
    """A line for each record that is not the same."""
    lines = []
    for name in old:
        for number, (was, now) in enumerate(zip(old[name], new[name], strict=False)):
            if was != now:
                lines.append(f"{name}, row {number}:\n  was {was}\n  is  {now}")
        if len(old[name]) != len(new[name]):
            lines.append(f"{name}: had {len(old[name])} rows, has {len(new[name])}")
    return lines


def main(base: str, *algorithms: str) -> int:
    here = Path(__file__).resolve().parent.parent
    chosen = algorithms or ALGORITHMS
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "base"
        subprocess.run(["git", "worktree", "add", "--detach", old, base], cwd=here, check=True)
        try:
            for library in (here / "dfpo_kernels").glob("*.so"):
                (old / "dfpo_kernels" / library.name).symlink_to(library)
            before = record(old, Path(folder) / "old-runs", chosen)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", old], cwd=here, check=True)
        after = record(here, Path(folder) / "new-runs", chosen)

    lines = differences(before, after)
    print("\n".join(lines) or f"{', '.join(before)}: the same as {base}, bit for bit")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
