"""The processes of a run, one a device.

Each holds the whole rollout and decides the same from it; what takes time is shared out: sampling,
log-probabilities, values and gradients. What is made once, such as a reward or a file, is made by
the first process, the lead. So statistics over a step need no thought of processes: they are global
by construction, and a run of two processes is the run of one, up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class ProcessLost(RuntimeError):
    """Another process of the run ended before its time."""


# Gradients are summed in pieces of this many bytes, so that their copies are never all there.
BUCKET = 64 * 2**20


@dataclass(frozen=True)
class Processes:
    """This process among ``count``."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def here() -> Processes:
        if not (dist.is_available() and dist.is_initialized()):
            return Processes()
        return Processes(dist.get_rank(), dist.get_world_size())

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes, in place."""
        if self.count > 1:
            with _others():
                dist.all_reduce(tensor)
        return tensor

    def most(self, tensor: Tensor) -> Tensor:
        """The largest over processes, in place."""
        if self.count > 1:
            with _others():
                dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Each parameter's gradient becomes the sum over processes, zero where none has one."""
        if self.count == 1:
            return
        parameters = list(parameters)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

        for bucket in _buckets([parameter.grad for parameter in parameters]):
            flat = self.sum(torch.cat([gradient.flatten() for gradient in bucket]))
            pieces = flat.split([gradient.numel() for gradient in bucket])
            for gradient, piece in zip(bucket, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))

    def from_lead(self, make: Callable[[], T]) -> T:
        """What ``make`` returns in the first process, in all of them; all raise what it raises."""
        if self.count == 1:
            return make()
        made: list[Any] = [None, None]
        if self.leads:
            try:
                made = [make(), None]
            # Whatever it is, the others must not wait for what never comes.
            except Exception as error:  # noqa: BLE001
                made = [None, error]

        with _others():
            dist.broadcast_object_list(made, src=0)

        if made[1] is not None:
            raise made[1]
        return made[0]


@contextmanager
def _others() -> Iterator[None]:
    """Names what torch's many errors for it mean: who should have answered is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise ProcessLost(f"a process of this run is gone ({reason})") from error


def _buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """The gradients in order, in lists of one dtype and of at most BUCKET bytes or one tensor."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        bytes_more = gradient.numel() * gradient.element_size()
        if bucket and (size + bytes_more > BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += bytes_more

    if bucket:
        yield bucket
