"""Shared-out models whose only share is the whole: as the model itself, in every pass and form.
Several processes are tests/trainer/rollout/test_processes.py's."""

import copy

import pytest
import torch
import torch.distributed as dist
from tiny_models import make_model
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from dfpo.rollout.sharding import (
    as_forward,
    gather_state,
    gather_weights,
    is_sharded,
    load_optimizer,
    load_weights,
    shard,
    whole,
)

IDS = torch.arange(12).reshape(2, 6)


@pytest.fixture
def group(tmp_path):
    """One process that is a group of its own."""
    if dist.is_initialized():
        pytest.skip("another group of processes is at work")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def pair(group, tmp_path):
    """A model, and a copy that is shared out."""
    make_model(tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    shared = copy.deepcopy(plain)
    shard(shared, torch.device("cpu"), torch.float32)
    assert is_sharded(shared) and not is_sharded(plain)
    return plain, shared


def loss(model):
    return model(input_ids=IDS).logits.square().mean()


def step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loss(model).backward()
    optimizer.step()
    return optimizer


def test_passes_and_gradients_are_the_models_own(pair):
    plain, shared = pair
    losses = [loss(model) for model in pair]
    assert losses[0] == losses[1]
    for each in losses:
        each.backward()
    for (name, ours), theirs in zip(plain.named_parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad.full_tensor(), ours.grad, msg=name)


def test_weights_are_plain_tensors_inside(pair):
    plain, shared = pair
    with torch.no_grad(), whole(shared):
        assert loss(shared) == loss(plain)
    assert as_forward(plain, lambda: 7) == 7
    weight = "model.embed_tokens.weight"
    inside = as_forward(
        shared, lambda: shared.get_submodule(weight[: -len(".weight")]).weight.sum()
    )
    torch.testing.assert_close(inside, plain.get_parameter(weight).sum())


def test_a_whole_model_stays_whole_after_a_pass(pair):
    """Else the next pass would wait for processes that have no more batches."""
    plain, shared = pair
    with torch.no_grad(), whole(shared):
        for _ in range(2):
            assert as_forward(shared, lambda: loss(shared)) == loss(plain)
            assert not any(isinstance(p, DTensor) for p in shared.parameters())
    assert all(isinstance(p, DTensor) for p in shared.parameters())


def test_gathered_weights_are_the_models_file(pair):
    plain, shared = pair
    found, expected = gather_weights(shared), plain.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(2)
    load_weights(shared, plain.state_dict())
    after = gather_weights(shared)
    assert all(torch.equal(after[name], weight) for name, weight in plain.state_dict().items())


def test_an_optimiser_goes_on_from_a_single_ones_state(pair):
    plain, shared = pair
    ours, theirs = step(plain), step(shared)
    state = gather_state(theirs)
    for number, values in ours.state_dict()["state"].items():
        torch.testing.assert_close(state["state"][number], values)

    fresh = torch.optim.AdamW(shared.parameters(), lr=1e-2)
    load_optimizer(fresh, ours.state_dict())
    again = gather_state(fresh)["state"]
    for number, values in ours.state_dict()["state"].items():
        torch.testing.assert_close(again[number], values, rtol=0, atol=0)
