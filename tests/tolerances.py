"""The one table of tolerances: (absolute, relative) by the dtype of inputs and outputs."""

import torch

VALUE = {
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (1e-2, 1e-2),
    torch.float16: (2e-3, 2e-3),
}
