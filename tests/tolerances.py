"""The one table of tolerances: (absolute, relative) by the dtype of inputs and outputs.

The absolute part is in units of the largest expected value. Half precision tests compare with the
float64 result of the same rounded inputs, so what is left is the rounding of the output.
"""

import torch
from torch import Tensor

VALUE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (1e-2, 1e-2),
    torch.float16: (2e-3, 2e-3),
}
# flow_velocity in float32, in units of the sum of its terms' magnitudes, |offset| and
# |gain| (|bias| + |z z_weight| + |s time_weight|).
VELOCITY = 1e-6
# A reverse scan adds up the rounding errors of up to a few hundred tokens; absolute is absolute.
SCAN = {
    torch.float32: (5e-5, 2e-5),
    torch.bfloat16: (3e-2, 1e-2),
    torch.float16: (5e-3, 2e-3),
}


def assert_near(actual: Tensor, expected: Tensor, what: str = "value") -> None:
    """``actual`` is ``expected`` to the tolerance of its own dtype, and finite throughout."""
    assert actual.shape == expected.shape, f"{what}: {actual.shape} is not {expected.shape}"
    if actual.numel() == 0:
        return
    absolute, relative = VALUE[actual.dtype]
    expected = expected.detach().double()
    bound = absolute * expected.abs().max().clamp_min(1e-30) + relative * expected.abs()
    error = (actual.detach().double() - expected).abs()
    worst = (error / bound).max().item()
    assert worst <= 1.0, f"{what}: off by {error.max().item():.3g}, {worst:.3g} times the bound"


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Gradients of the same names, each in the dtype of its input."""
    for name, tensor in actual.items():
        assert tensor.grad is not None, f"{name}: has no gradient"
        assert tensor.grad.dtype == tensor.dtype
        assert_near(tensor.grad, expected[name].grad, f"gradient of {name}")
