"""Convolutions: the per-example weight gradient is small enough to be formed."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from privguard.training.bookkeeping.batch import Call
from privguard.training.bookkeeping.factors import Factor, Full

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_NOT_TRANSPOSED = (False,)


def convolution(call: Call) -> Iterator[tuple[str, Factor]]:
    """Convolution in one, two or three dimensions, with any padding, stride, dilation and grouping."""
    module, rows = cast("nn.Conv2d", call.module), len(call.g) // call.batch
    if "weight" in call.wanted:
        x, padding = _padded(module, call.x.to(call.g.dtype))
        yield "weight", Full(_weights(module, x, call.g, rows, padding).float())
    if "bias" in call.wanted:
        yield "bias", Full(call.g.reshape(call.batch, rows, module.out_channels, -1).sum((1, 3), dtype=torch.float32))


def _padded(module: Convolution, x: Tensor) -> tuple[Tensor, Sequence[int]]:
    """The input with any padding that is not plain zeros on both sides laid around it, and the zeros that are left."""
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return x, module.padding
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    around = module._reversed_padding_repeated_twice  # noqa: SLF001 — torch keeps the resolved padding there
    return functional.pad(x, around, mode=mode), [0] * (x.dim() - 2)


def _weights(module: Convolution, x: Tensor, g: Tensor, rows: int, padding: Sequence[int]) -> Tensor:
    """A loop of the ordinary weight-gradient kernel over single examples of ``rows`` rows each."""
    weight, zero = module.weight.detach().to(g.dtype), [0] * (x.dim() - 2)
    geometry = (module.stride, padding, module.dilation, *_NOT_TRANSPOSED, zero, module.groups)
    return torch.stack(
        [
            torch.ops.aten.convolution_backward(mine, seen, weight, None, *geometry, [False, True, False])[1]
            for mine, seen in zip(g.split(rows), x.split(rows), strict=True)
        ]
    )
