"""DFPO: post-train language models on rewards you cannot trust.

    import dfpo

    run = dfpo.train(model="my-model", data="prompts.jsonl", reward=my_reward)
    run.metrics                       # a row a step
    run.values(prompt, answer)        # the critic's distribution of returns before each token

``dfpo_kernels`` needs torch alone; the trainer needs ``pip install 'dfpo[train]'``.
"""

from __future__ import annotations

import importlib
import importlib.util
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dfpo.config import ALGORITHMS, ConfigError
    from dfpo.run.api import Evaluation, Run, Values, evaluate, load, train
    from dfpo.run.stop import RunError
    from dfpo.study.api import Audit, Comparison, audit, compare

__version__ = metadata.version("dfpo")
__all__ = [
    "ALGORITHMS", "Audit", "Comparison", "ConfigError", "Evaluation", "Run", "RunError", "Values",
    "audit", "compare", "evaluate", "load", "train",
]  # fmt: skip

# Loaded when asked for, so that `import dfpo` costs nothing and needs torch alone.
_HOME = {
    "ALGORITHMS": "dfpo.config",
    "ConfigError": "dfpo.config",
    "RunError": "dfpo.run.stop",
    **dict.fromkeys(("Audit", "Comparison", "audit", "compare"), "dfpo.study.api"),
    **dict.fromkeys(("Evaluation", "Run", "Values", "evaluate", "load", "train"), "dfpo.run.api"),
}
# What training imports and the kernels do not: the extra `train` without shtab, which writes
# completion scripts.
_TRAINER = (
    "transformers", "accelerate", "safetensors", "numpy", "pyarrow", "matplotlib", "yaml", "tqdm",
    "tabulate",
)  # fmt: skip


def missing_trainer() -> str | None:
    """One line on what the trainer lacks here; None where it is installed."""
    missing = [name for name in _TRAINER if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return f"dfpo: the trainer lacks {', '.join(missing)}: pip install 'dfpo[train]'"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dfpo' has no attribute {name!r}")
    if said := missing_trainer():
        raise ImportError(said)
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
