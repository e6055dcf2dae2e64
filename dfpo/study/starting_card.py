"""The model card of a starting policy."""

from __future__ import annotations

import torch
import transformers
from transformers import LlamaForCausalLM

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
license: apache-2.0
---
# Starting policy for the {title}

A Llama-architecture model with {parameters:,} float32 parameters and {words} whole-word tokens. It
solves the tasks of `{module}` (math, science, dialogue) with their working shown, and has learned
them from a demonstrator that {slips}. It knows no other text.

## How it was made

```
{command}
```

took {seconds:.0f} CPU-seconds for the updates, with torch {torch_version} and transformers
{transformers_version}. The same command on the same machine gives the same weights.

## What it does

{prompts} held-out prompts per row, one answer each:

{table}

{columns}

{greedy}
"""
SUITES = {
    "suite": {
        "title": "three-domain suite",
        "module": "dfpo.tasks",
        "slips": "makes one systematic slip per domain with probability {slip:g} where\nit can",
        "greedy": "Where the demonstrator slips more often than not, the likeliest answer holds "
        "every slip there is\nroom for, so greedy accuracy is the lower one by design.",
    },
    "shared": {
        "title": "suite with a shared skill",
        "module": "dfpo.tasks.shared",
        "slips": "forgets a carry with probability {slip:g},\n"
        "and makes one slip of each domain's own half as often",
        "greedy": "Where the demonstrator slips more often than not, the likeliest answer forgets "
        "every carry, so\ngreedy accuracy is the lower one by design.",
    },
    "hard": {
        "title": "suite with headroom",
        "module": "dfpo.tasks.hard",
        "slips": "makes several kinds of slips per domain, with probability {slip:g} where\nthe "
        "context invites them and half of that elsewhere",
        "greedy": "The likeliest answer holds every slip that its contexts invite, and no other, "
        "so sharpening alone\nbrings a policy to greedy accuracy and no further.",
    },
}


def starting_card(
    model: LlamaForCausalLM,
    *,
    task: str,
    slip: float,
    command: str,
    seconds: float,
    prompts: int,
    table: str,
    columns: str,
) -> str:
    """Markdown with the metadata that model hubs read."""
    words = SUITES[task]
    return CARD.format(
        **{**words, "slips": words["slips"].format(slip=slip)},
        parameters=model.num_parameters(),
        words=model.config.vocab_size,
        command=command,
        seconds=seconds,
        torch_version=torch.__version__,
        transformers_version=transformers.__version__,
        prompts=prompts,
        table=table,
        columns=columns,
    )
