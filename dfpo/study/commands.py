"""Commands about many runs, or about what a run has learned: ``dfpo compare`` and its like. Each
loads what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dfpo.config import ConfigError
from dfpo.config.build import options
from dfpo.config.flags import Command, Parser, add_settings, count, positive

COMPARE_EPILOG = """\
examples:
  dfpo compare --quick                         does it work here: two arms, ten minutes of two cores
  dfpo compare recipes/compare.yaml            arms x noises x domains x seeds
  dfpo compare recipes/compare.yaml --seeds 2 --output runs/first
                                               the first two seeds of it
  dfpo tune recipes/compare.yaml               before it: settings of each arm, on one budget

The same command again goes on where it stopped and tries failed cells once more. Settings given as
flags hold for every cell; one that an arm, a noise or a domain sets is refused.
"""
# What a recipe gives, or the grid.
GRID = ("algorithm", "seed", "noise", "name", "runs_dir", "plots", "trackers")


def add_compare(parser: Parser, everything: bool) -> None:
    parser.add_argument("--quick", action="store_true", help="the built-in recipe")
    parser.add_argument(
        "--seeds", type=positive, metavar="N", help="the first N of the recipe's seeds alone"
    )
    parser.add_argument(
        "--rows", type=Path, metavar="FILE",
        help="a results.jsonl of the recipe, whose cells are not trained again",
    )  # fmt: skip
    add_tune(parser, everything)


def run_compare(args: argparse.Namespace) -> None:
    if (args.recipe is None) != args.quick:
        raise ConfigError("recipe: must be given, or --quick instead of it")
    from dfpo.study.compare import compare

    compare(
        args.recipe, args.output, args.seeds, args.jobs, _grid_flags(args), where=args.on,
        rows=args.rows,
    )  # fmt: skip


def add_tune(parser: Parser, everything: bool) -> None:
    parser.add_argument(
        "recipe", type=Path, nargs="?", metavar="RECIPE", help="YAML file: docs/compare.md"
    )
    parser.add_argument(
        "--jobs", type=positive, metavar="N", help="cells at a time (default: one a core)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write (default: the recipe's)"
    )
    parser.add_argument(
        "--on", default="local", metavar="WHERE",
        help="where cells run: local, ray, or the address of a Ray cluster (default: local)",
    )  # fmt: skip
    of_cells = [name for name, _, _ in options() if name not in GRID]
    add_settings(parser, chosen=of_cells, everything=everything)


def run_tune(args: argparse.Namespace) -> None:
    if args.recipe is None:
        raise ConfigError("recipe: must be given")
    from dfpo.study.tune import tune

    tune(args.recipe, args.output, args.jobs, _grid_flags(args), args.on)


def _grid_flags(args: argparse.Namespace) -> dict[str, Any]:
    own = ("command", "recipe", "quick", "jobs", "output", "seeds", "on", "rows")
    return {k: v for k, v in vars(args).items() if k not in own}


CRITIC_EPILOG = """\
examples:
  dfpo train --steps 50 --critic.warmup-steps 50 --name mine
                                               a critic of a policy that stands still
  dfpo critic runs/mine                        what it knows
  dfpo critic runs/a runs/b --plot critics.png two critics side by side
"""


def add_critic(parser: Parser, everything: bool) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="directory of a run")
    parser.add_argument(
        "--answers", type=positive, default=6, metavar="N",
        help="answers per domain whose states are probed (default: 6)",
    )  # fmt: skip
    parser.add_argument(
        "--plays", type=positive, default=64, metavar="N",
        help="plays from each state (default: 64)",
    )  # fmt: skip
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the runs' scores side by side"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write them as an HTML page"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_critic(args: argparse.Namespace) -> None:
    from dfpo.study.probe.command import critic_report, probe_runs, to_json

    reports = probe_runs(args.runs, args.answers, args.plays, args.plot, args.output)
    print(to_json(reports) if args.json else critic_report(reports))


AUDIT_EPILOG = """\
examples:
  dfpo train --steps 200 --critic.warmup-steps 200 --critic.warmup-epochs 1 --name mine
                                               a critic of a policy that stands still
  dfpo audit runs/mine                         how wrong was its reward, by domain
  dfpo audit runs/mine --by level --show 50    by a column of the data; the 50 most surprising
"""


def add_audit(parser: Parser, everything: bool) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help="directory of a run")
    parser.add_argument(
        "--answers", type=positive, default=1024, metavar="N",
        help="fresh answers to training prompts (default: 1024)",
    )  # fmt: skip
    parser.add_argument(
        "--by", default="domain", metavar="COLUMN",
        help="column whose values are audited apart (default: domain)",
    )  # fmt: skip
    parser.add_argument(
        "--show", type=count, default=10, metavar="N",
        help="print the N most surprising rewards (default: 10)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_audit(args: argparse.Namespace) -> None:
    from dfpo.study.audit.command import audit, audit_report, to_json

    audited = audit(args.run, args.answers, args.by)
    print(to_json(audited) if args.json else audit_report(audited, args.show))


def add_sft(parser: Parser, everything: bool) -> None:
    from dfpo.study import starting_policy

    starting_policy.add_arguments(parser)


def run_sft(args: argparse.Namespace) -> None:
    from dfpo.study import starting_policy

    starting_policy.main(args)


COMMANDS = {
    "compare": Command(
        help="train a grid of arms, noises, domains and seeds, and compare them",
        description="Train a grid of runs; write tables, plots and paired differences.",
        add_arguments=add_compare,
        run=run_compare,
        usage="dfpo compare RECIPE | --quick [--jobs N] [--SETTING VALUE ...]",
        epilog=COMPARE_EPILOG,
    ),
    "tune": Command(
        help="choose settings for the arms of a comparison, on one budget",
        description="Try each arm's settings on other seeds and noisy held-out rewards.",
        add_arguments=add_tune,
        run=run_tune,
        usage="dfpo tune RECIPE [--jobs N] [--SETTING VALUE ...]",
        epilog=COMPARE_EPILOG,
    ),
    "critic": Command(
        help="measure what the critics of some runs know",
        description=(
            "Plays on from the states of a few answers many times with the run's own policy, and "
            "compares the returns with what the critic predicts. Writes critic.json, critic.html "
            "and plots/critic_*.png into each run."
        ),
        add_arguments=add_critic,
        run=run_critic,
        usage=(
            "dfpo critic RUN [RUN ...] [--answers N] [--plays N] [--plot FILE] [-o FILE] [--json]"
        ),
        epilog=CRITIC_EPILOG,
    ),
    "audit": Command(
        help="say how wrong a run's reward is, and where",
        description=(
            "Samples fresh answers, and compares what training would be told of them with what "
            "the run's critic expects: rates of wrong labels or the spread of rewards by group, "
            "and the most surprising rewards. Writes audit.json and audit.parquet into the run."
        ),
        add_arguments=add_audit,
        run=run_audit,
        usage="dfpo audit RUN [--answers N] [--by COLUMN] [--show N] [--json]",
        epilog=AUDIT_EPILOG,
    ),
    "sft": Command(
        help="make the starting policy that ships with dfpo",
        description="Fine-tune the small starting policy on a sloppy demonstrator.",
        add_arguments=add_sft,
        run=run_sft,
    ),
}
