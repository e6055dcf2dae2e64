"""Verifiable tasks: the built-in suites, reasoning-gym's data sets, public benchmarks.

A suite has three domains, math, science and dialogue, whose answers show their working. Texts are
space-separated tokens, every digit its own token. Each domain has an in-domain ("id") and an
out-of-domain ("ood") split whose ranges do not overlap, and systematic slips that a sloppy
demonstrator makes, so that a policy trained on it has something to unlearn: one per domain in
`suite`, several that depend on context in `hard`, one of all domains beside their own in `shared`.
"""

from dfpo.tasks import dialogue, hard, math, science, shared
from dfpo.tasks.suite import SPLITS, STREAMS, Problem, Suite, slip_position

SUITES: dict[str, Suite] = {
    "suite": Suite("suite", {"math": math, "science": science, "dialogue": dialogue}),
    **{
        name: Suite(name, {"math": m.math, "science": m.science, "dialogue": m.dialogue})
        for name, m in (("hard", hard), ("shared", shared))
    },
}
# The demo's suite by itself.
DOMAINS = SUITES["suite"].domains
VOCABULARY = SUITES["suite"].vocabulary
problem = SUITES["suite"].problem
demonstration = SUITES["suite"].demonstration
reward = SUITES["suite"].reward

__all__ = [
    "DOMAINS", "SPLITS", "STREAMS", "SUITES", "VOCABULARY", "Problem", "Suite", "demonstration",
    "problem", "reward", "slip_position",
]  # fmt: skip
