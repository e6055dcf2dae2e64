"""Models shared out over processes by torch's FSDP2: each holds a share of every weight, of its
gradient and of its optimiser's state.

Layers are gathered one by one where gradients flow. Where none do, in sampling and in looking at
what was sampled, a model is whole for the time being: then processes may work on unlike numbers of
batches, none waits for another, and a token costs no communication.

Source: Zhao et al. 2023, "PyTorch FSDP", arXiv 2304.11277; torch.distributed.fsdp.fully_shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from dfpo.rollout.compiled import layers_of
from dfpo.rollout.processes import Processes

T = TypeVar("T")


def shard(
    model: nn.Module, device: torch.device, dtype: torch.dtype, methods: tuple[str, ...] = ()
) -> None:
    """Leaves this process its share of ``model`` on ``device``. The language model in it multiplies
    in ``dtype``; ``methods`` are those beside forward that use weights."""
    mesh = init_device_mesh(device.type, (Processes.here().count,))
    half = {"mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)}
    if dtype == torch.float32:
        half = {}
    trunk = getattr(model, "trunk", model)
    for layer in list(layers_of(model)):
        fully_shard(layer, mesh=mesh, **half)

    if trunk is not model:
        fully_shard(trunk, mesh=mesh, **half)
    fully_shard(model, mesh=mesh, **(half if trunk is model else {}))

    model.as_forward = MethodType(lambda self, compute: compute(), model)
    for name in ("as_forward", *methods):
        register_fsdp_forward_method(model, name)

    for part in _parts(model):
        # Sums, as everywhere here: what a loss divides by is the whole minibatch's already.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def as_forward(model: nn.Module, compute: Callable[[], T]) -> T:
    """``compute()``, which uses weights of ``model`` as its forward pass would."""
    if not is_sharded(model) or not any(isinstance(p, DTensor) for p in model.parameters()):
        # Of a model that is whole, a pass within a pass would leave each process its share again.
        return compute()
    return model.as_forward(compute)


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """All weights of ``model`` are there inside, in every process. All processes take part."""
    parts = _parts(model)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()

    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """The whole state of ``model`` in the first process, nothing in the others, which take part."""
    if not is_sharded(model):
        return model.state_dict()
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    # Tied weights are one tensor again, which is written once.
    first: dict[int, str] = {}

    for name, parameter in model.named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(parameter), name)
        if kept != name and name in state:
            state[name] = state[kept]

    return state


def load_weights(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Brings ``model`` to a whole state, which every process has."""
    if is_sharded(model):
        set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(state)


def gather_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's whole state in every process, in the form of a single one."""

    def full(value: Any) -> Any:
        return value.full_tensor().cpu() if isinstance(value, DTensor) else value

    return tree_map(full, optimizer.state_dict())


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Brings an optimiser to a whole state, of any number of processes."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shares = {
        number: {name: _share(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": shares})


def _share(value: Tensor, parameter: Tensor) -> Tensor:
    """This process's share of a number for each weight; what is one number for all, as it is."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)


def _parts(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
