"""Convolutions: the per-example weight gradient is small enough to be formed."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from privguard.training.bookkeeping.call import Call
from privguard.training.bookkeeping.factors import Factor, Full

_NOT_TRANSPOSED = (False,)


def convolution(call: Call) -> Iterator[tuple[str, Factor]]:
    """Convolution with zero padding given as numbers."""
    module, rows = cast("nn.Conv2d", call.module), len(call.g) // call.batch
    if "weight" in call.wanted:
        yield "weight", Full(_weights(module, call.x, call.g, rows))
    if "bias" in call.wanted:
        yield "bias", Full(call.g.reshape(call.batch, rows, module.out_channels, -1).sum((1, 3)))


def _weights(module: nn.Conv2d, x: Tensor, g: Tensor, rows: int) -> Tensor:
    """A loop of the ordinary weight-gradient kernel over single examples of ``rows`` rows each."""
    weight, zero = module.weight.detach(), [0] * (x.dim() - 2)
    geometry = (module.stride, module.padding, module.dilation, *_NOT_TRANSPOSED, zero, module.groups)
    return torch.stack(
        [
            torch.ops.aten.convolution_backward(mine, seen, weight, None, *geometry, [False, True, False])[1]
            for mine, seen in zip(g.split(rows), x.split(rows), strict=True)
        ]
    )
