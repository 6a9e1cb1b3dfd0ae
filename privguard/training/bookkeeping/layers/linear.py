# SPDX-License-Identifier: Apache-2.0
"""Matrix layers: ``nn.Linear`` and the transposed ``Conv1D`` of transformers."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from privguard.training.bookkeeping.batch import Call
from privguard.training.bookkeeping.factors import Factor, Full, Outer
from privguard.training.bookkeeping.registry import register_rule


@register_rule(nn.Linear)
def linear(call: Call) -> Iterator[tuple[str, Factor]]:
    """Y = X Wᵀ + b."""
    g = positions(call.g, call.batch)
    if "weight" in call.wanted:
        yield "weight", Outer(g, positions(call.x.to(g.dtype), call.batch))
    if "bias" in call.wanted:
        yield "bias", Full(total(g))


@register_rule(Conv1D)
def conv1d_of_transformers(call: Call) -> Iterator[tuple[str, Factor]]:
    """Y = X W + b, the layout of GPT-2."""
    g = positions(call.g, call.batch)
    if "weight" in call.wanted:
        yield "weight", Outer(positions(call.x.to(g.dtype), call.batch), g)
    if "bias" in call.wanted:
        yield "bias", Full(total(g))


def positions(x: Tensor, batch: int) -> Tensor:
    """(B·k, …, d) → (B, T, d): every dimension between the example and the features is a position."""
    return x.reshape(batch, math.prod(x.shape[:-1]) // batch, x.shape[-1])


def total(g: Tensor) -> Tensor:
    """(B, T, d) → (B, d), float32."""
    return g[:, 0].float() if g.shape[1] == 1 else g.sum(1, dtype=torch.float32)
