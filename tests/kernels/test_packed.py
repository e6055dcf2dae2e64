"""Packed sequences (cu_seqlens): each is what it is alone, in every mode and on every backend."""

import pytest
import torch
from kernels.scans import double, make_scan, pack, pack_rows
from tolerances import SCAN

import dfpo_kernels
from dfpo_kernels import reference

LENGTHS = [7, 0, 40, 1, 16, 33]
MODES = ["carry", "zero", "none"]
OPS = ["distributional_gae", "lambda_mixture_targets"]
PARAMETERS = {
    "distributional_gae": {"gamma": 0.9, "lam": 0.8, "target_lam": 0.5},
    "lambda_mixture_targets": {"gamma": 0.9, "lam": 0.8, "seed": 3},
}


def make_packed(num_quantiles, explicit=False):
    inputs = make_scan(len(LENGTHS), max(LENGTHS), num_quantiles, bootstrap=not explicit)
    if explicit:
        inputs["next_quantiles"] = torch.randn_like(inputs["quantiles"])
    # make_scan's masked row; it has to be one with tokens.
    inputs["mask"][2] = False
    return inputs, pack(inputs, LENGTHS)


def outputs_of(found):
    return found if isinstance(found, tuple) else (found,)


def alone(op, inputs, row, parameters):
    """The sequence as a batch of one, of its own length."""
    length = LENGTHS[row]
    single = {
        name: None
        if x is None
        else x[row : row + 1, :length]
        if name != "bootstrap"
        else x[row : row + 1]
        for name, x in inputs.items()
    }
    if op == "lambda_mixture_targets":
        parameters = parameters | {"rows": torch.tensor([row])}
    return outputs_of(getattr(dfpo_kernels, op)(**single, **parameters))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_quantiles", [1, 6, 33])
@pytest.mark.parametrize(("op", "explicit"), [(OPS[0], False), (OPS[0], True), (OPS[1], False)])
def test_each_sequence_is_what_it_is_alone(op, explicit, num_quantiles, mode):
    inputs, packed = make_packed(num_quantiles, explicit)
    parameters = PARAMETERS[op] | {"mask_mode": mode}
    together = outputs_of(getattr(dfpo_kernels, op)(**packed, **parameters))
    distribution = outputs_of(getattr(reference, op)(**double(packed), **parameters))
    atol, rtol = SCAN[torch.float32]
    for one, other in zip(together, distribution, strict=True):
        torch.testing.assert_close(one.double(), other, atol=atol, rtol=rtol)
    parts = [alone(op, inputs, row, parameters) for row in range(len(LENGTHS))]
    for one, *others in zip(together, *parts, strict=True):
        assert torch.equal(one, torch.cat([other[0] for other in others]))


@pytest.mark.parametrize("num_quantiles", [1, 6])
def test_padding_on_either_side_changes_nothing(num_quantiles):
    """Under "carry" a padded batch and the packed one agree, whatever side the padding is on."""
    inputs, packed = make_packed(num_quantiles)
    parameters = PARAMETERS["distributional_gae"]
    together = dfpo_kernels.distributional_gae(**packed, **parameters)
    for side in ("left", "right"):
        padded = {"bootstrap": inputs["bootstrap"]}
        for name in ("rewards", "quantiles", "mask", "done"):
            padded[name] = torch.full_like(inputs[name], 0 if name in ("mask", "done") else 9)
            for row, length in enumerate(LENGTHS):
                start = max(LENGTHS) - length if side == "left" else 0
                padded[name][row, start : start + length] = inputs[name][row, :length]
        found = dfpo_kernels.distributional_gae(**padded, **parameters)
        for one, other in zip(together, found, strict=True):
            if side == "left":
                other = torch.stack(
                    [
                        row.roll(length - max(LENGTHS), 0)
                        for row, length in zip(other, LENGTHS, strict=True)
                    ]
                )
            assert torch.equal(one, pack_rows(other, LENGTHS))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_quantiles", [1, 6])
def test_gradients_with_explicit_successors(num_quantiles, mode):
    _, packed = make_packed(num_quantiles, explicit=True)
    grads = []
    for op, tensors in (
        (dfpo_kernels.distributional_gae, dict(packed)),
        (reference.distributional_gae, double(packed)),
    ):
        leaves = [tensors[name] for name in ("rewards", "quantiles", "next_quantiles")]
        for leaf in leaves:
            leaf.grad = None
            leaf.requires_grad_()
        outputs = op(**tensors, gamma=0.9, lam=0.8, mask_mode=mode)
        loss = sum((x * torch.linspace(-1, 2, x.numel()).view(x.shape)).sum() for x in outputs)
        found = torch.autograd.grad(loss, leaves)
        assert all(grad.abs().max() > 0.1 for grad in found)
        grads.append(found)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=1e-4, rtol=1e-4)


def test_packed_gae_by_hand():
    # Two answers of two and one tokens, gamma = lam = 1. First: A_1 = 4 - 2 = 2,
    # A_0 = 1 + 2 - 3 + 2 = 2. Second: 5 - 1 = 4; nothing of it reaches the first.
    advantages, targets = dfpo_kernels.distributional_gae(
        torch.tensor([1.0, 4.0, 5.0]), torch.tensor([[3.0], [2.0], [1.0]]), torch.ones(3),
        gamma=1.0, lam=1.0, cu_seqlens=torch.tensor([0, 2, 3]),
    )  # fmt: skip
    assert advantages.flatten().tolist() == [2.0, 2.0, 4.0]
    assert targets.flatten().tolist() == [5.0, 4.0, 5.0]
