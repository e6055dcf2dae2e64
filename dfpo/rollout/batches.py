"""A batch of answers as micro-batches: as many tokens at a time as memory has room for, shared out
over the processes of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dfpo.config.types import Samples, row_index
from dfpo.rollout.processes import Processes


class Parts(NamedTuple):
    """Tensors by name: one row an answer, of its tokens or of the whole answer."""

    tokens: dict[str, Tensor]  # [B, T, ...]
    answers: dict[str, Tensor]  # [B, ...]


def micro_batches(
    prompts: list[int],  # tokens of each prompt
    answers: list[int],  # tokens of each answer
    budget: int,  # 0: no bound
    least: int = 1,
) -> list[list[int]]:
    """Rows in batches of at most ``budget`` tokens, padding included, and at least one row;
    sorted by length, so that a batch pads little. At least ``least`` batches, where there are rows
    enough. A single batch keeps its order."""
    count = len(prompts)
    if not count:
        return []
    widest = max(prompts) + max(answers)
    if least == 1 and (not budget or count * widest <= budget):
        return [list(range(count))]

    batches: list[list[int]] = []
    most_rows = prompt = answer = 0  # of the batch at hand: its rows' bound, its longest
    order = sorted(range(count), key=lambda i: prompts[i] + answers[i], reverse=True)
    for placed, row in enumerate(order):
        prompt, answer = max(prompt, prompts[row]), max(answer, answers[row])
        size = len(batches[-1]) + 1 if batches else 0
        fits = not budget or size * (prompt + answer) <= budget
        if batches and size <= most_rows and fits:
            batches[-1].append(row)
        else:
            # As many rows as leave enough for the batches that must follow.
            most_rows = -(-(count - placed) // max(1, least - len(batches)))
            batches.append([row])
            prompt, answer = prompts[row], answers[row]

    return batches


def share_of(
    batches: list[list[int]], prompts: list[int], answers: list[int], processes: Processes
) -> list[list[int]]:
    """The batches that this process takes: each, the costliest first, goes to the process that has
    least to do. The first process always has one."""

    def cost(batch: list[int]) -> int:
        return len(batch) * (max(prompts[i] for i in batch) + max(answers[i] for i in batch))

    loads = [0] * processes.count
    mine = []
    for batch in sorted(batches, key=cost, reverse=True):
        process = loads.index(min(loads))
        loads[process] += cost(batch)
        if process == processes.rank:
            mine.append(batch)

    return mine


def parts_of(samples: Samples, rows: list[int], budget: int) -> list[list[int]]:
    """This process' micro-batches of the answers in ``rows``, as rows of ``samples``."""
    return shares_of(samples, rows, budget)[Processes.here().rank]


def shares_of(samples: Samples, rows: list[int], budget: int) -> list[list[list[int]]]:
    """The same of every process."""
    count = Processes.here().count
    prompts = [samples.prompt_lengths[i] for i in rows]
    answers = [samples.lengths[i] for i in rows]
    batches = micro_batches(prompts, answers, budget, count)
    return [
        [
            [rows[i] for i in batch]
            for batch in share_of(batches, prompts, answers, Processes(rank, count))
        ]
        for rank in range(count)
    ]


@torch.no_grad()
def by_parts(
    compute: Callable[[Samples, list[int]], Parts], samples: Samples, budget: int
) -> Parts:
    """``compute`` of all answers, part by part: it gets some answers, without columns that are
    padding to all of them, and which rows they are. Every process gets everything."""
    processes = Processes.here()
    everything = list(range(len(samples.lengths)))
    batches = parts_of(samples, everything, budget)
    if processes.count == 1 and batches == [everything] and samples.is_cut:
        return compute(samples, everything)

    whole = Parts({}, {})
    for rows in batches:
        part = samples.part(rows)
        index = row_index(rows, samples.mask.device)
        computed = compute(part, rows)
        for kind, values in enumerate(computed):
            for name, value in values.items():
                if name not in whole[kind]:
                    whole[kind][name] = _zeros(value, samples, is_token=kind == 0)
                if kind == 0:
                    whole.tokens[name][index, : value.shape[1]] = value
                else:
                    whole.answers[name][index] = value

    return _shared(whole, samples, processes)


def _zeros(like: Tensor, samples: Samples, *, is_token: bool) -> Tensor:
    shape = (*samples.mask.shape, *like.shape[2:]) if is_token else (
        len(samples.lengths), *like.shape[1:]
    )  # fmt: skip
    return torch.zeros(shape, dtype=like.dtype, device=like.device)


def _shared(mine: Parts, samples: Samples, processes: Processes) -> Parts:
    """Everybody's rows: each process has zeros where others have theirs, so their sum is all."""
    if processes.count == 1:
        return mine
    made = processes.from_lead(
        lambda: [{n: (v.shape, v.dtype) for n, v in values.items()} for values in mine]
    )
    device = samples.mask.device

    for kind, names in enumerate(made):
        for name, (shape, dtype) in names.items():
            if name not in mine[kind]:
                mine[kind][name] = torch.zeros(shape, dtype=dtype, device=device)
            processes.sum(mine[kind][name])

    return mine
