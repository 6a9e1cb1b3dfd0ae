"""Layers that normalise within an example, then scale and shift: Y = x̂ w + b."""

from collections.abc import Iterator
from typing import cast

from torch import nn
from torch.nn import functional

from privguard.training.bookkeeping.call import Call
from privguard.training.bookkeeping.factors import Factor, Full


def layer_norm(call: Call) -> Iterator[tuple[str, Factor]]:
    """x̂ is normalised over the last dimensions."""
    module = cast("nn.LayerNorm", call.module)
    shape = (call.batch, -1, *module.normalized_shape)
    if "weight" in call.wanted:
        normal = functional.layer_norm(call.x, module.normalized_shape, None, None, module.eps)
        yield "weight", Full((call.g * normal).reshape(shape).sum(1))
    if "bias" in call.wanted:
        yield "bias", Full(call.g.reshape(shape).sum(1))


def group_norm(call: Call) -> Iterator[tuple[str, Factor]]:
    """x̂ is normalised over groups of channels."""
    module = cast("nn.GroupNorm", call.module)
    space = call.x[0, 0].numel()
    shape = (call.batch, call.x.numel() // (call.batch * module.num_channels * space), module.num_channels, space)
    if "weight" in call.wanted:
        normal = functional.group_norm(call.x, module.num_groups, None, None, module.eps)
        yield "weight", Full((call.g * normal).reshape(shape).sum((1, 3)))
    if "bias" in call.wanted:
        yield "bias", Full(call.g.reshape(shape).sum((1, 3)))
