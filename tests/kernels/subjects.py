"""What test_ecosystem.py wraps, and its work in two processes: of a name that both can import."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import dfpo_kernels as kernels
from dfpo_kernels import FlowField
from dfpo_kernels.nn import ValueFlowHead

B, T, Q, W, D = 4, 3, 8, 5, 6


class EveryOp(nn.Module):
    """All six ops on particles [B, T, Q], as one number for each row and op: [B, 6]."""

    def __init__(self):
        super().__init__()
        shapes = {"bias": (T, W), "gain": (T, W), "offset": (T,), "z": (W,), "time": (W,)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def forward(self, particles):
        lead = particles.shape[:2]
        field = FlowField(
            self.bias.expand(*lead, W), self.gain.expand(*lead, W), self.offset.expand(lead),
            self.z, self.time,
        )  # fmt: skip
        rewards, mask = particles[..., 0].tanh(), torch.ones_like(particles[..., 0])
        # Whose draws a sequence takes: its place in the batch, unless it is said.
        rows = torch.zeros_like(mask[:, 0], dtype=torch.int64)
        scan = {"gamma": 0.9, "lam": 0.7}
        moved = kernels.integrate_flow(field, particles, steps=3)
        answers = (
            moved,
            kernels.flow_velocity(field, particles, 0.3),
            kernels.flow_consistency_loss(field, particles, steps=3),
            kernels.quantile_huber_loss(moved, particles.flip(-1), kappa=0.5),
            kernels.distributional_gae(rewards, particles, mask, **scan)[0],
            kernels.lambda_mixture_targets(rewards, particles, mask, **scan, seed=3, rows=rows),
        )
        return torch.stack([answer.flatten(1).square().mean(-1) for answer in answers], dim=-1)


def head_and_input():
    return ValueFlowHead(D, Q, W, linear_mean=False), torch.randn(B, T, D)


def ops_and_input():
    return EveryOp(), torch.randn(B, T, Q)


SUBJECTS = {"ValueFlowHead": head_and_input, "ops": ops_and_input}


def sharded(module):
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    return fully_shard(module, mesh=mesh)


WRAPS = {"DDP": DistributedDataParallel, "FSDP2": sharded}


def one_of_two(rank, folder):
    """A process with half of the rows: the gradients of every subject under every wrap."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {
        (wrap, subject): own_gradients(WRAPS[wrap](copy.deepcopy(module)), given.chunk(2)[rank])
        for subject, (module, given) in torch.load(f"{folder}/given", weights_only=False).items()
        for wrap in WRAPS
    }
    if not rank:
        torch.save(found, f"{folder}/found")
    # None ends while the other still listens.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def own_gradients(module, given):
    module(given).square().mean().backward()
    grads = [parameter.grad for parameter in module.parameters()]
    return [grad.full_tensor() if isinstance(grad, DTensor) else grad for grad in grads]
