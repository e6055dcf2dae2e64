"""Inputs for the tests of the reverse scans."""

import torch


def make_scan(
    rows: int,
    length: int,
    num_quantiles: int,
    *,
    seed: int = 0,
    masks: str = "random",
    done: float = 0.1,
    bootstrap: bool = True,
    dtype: torch.dtype = torch.float32,
) -> dict[str, torch.Tensor | None]:
    """Rewards, quantiles, mask, done and bootstrap. masks: "random" has tool tokens in the middle
    and padding on both sides, "ones" has neither."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, length, dtype=torch.bool)
    if masks == "random":
        mask = torch.rand(rows, length, generator=g) > 0.3
        column = torch.arange(length)
        left = torch.randint(0, max(length // 4, 1), (rows, 1), generator=g)
        right = torch.randint(0, max(length // 4, 1), (rows, 1), generator=g)
        mask &= (column >= left) & (column < length - right)
        # A row without a single token.
        mask[rows // 2] &= rows == 1
    return {
        "rewards": torch.randn(rows, length, generator=g).to(dtype),
        "quantiles": torch.randn(rows, length, num_quantiles, generator=g).to(dtype),
        "mask": mask,
        "done": torch.rand(rows, length, generator=g) < done if done else None,
        "bootstrap": torch.randn(rows, num_quantiles, generator=g).to(dtype) if bootstrap else None,
    }


def double(inputs: dict) -> dict:
    """The same numbers in float64, leaves of their own graph."""
    return {
        name: x.detach().double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for name, x in inputs.items()
    }


def pack(inputs: dict, lengths: list[int]) -> dict:
    """The first lengths[b] tokens of every row, packed, with cu_seqlens."""
    packed = dict(inputs)
    for name in ("rewards", "quantiles", "mask", "done", "next_quantiles"):
        if inputs.get(name) is not None:
            packed[name] = pack_rows(inputs[name], lengths)
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return packed | {"cu_seqlens": offsets}


def pack_rows(x: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    return torch.cat([row[:length] for row, length in zip(x, lengths, strict=True)])
