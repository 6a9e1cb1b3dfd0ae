# SPDX-License-Identifier: Apache-2.0
"""Layers that normalise within an example, then scale and shift: Y = x̂ w + b."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from privguard.training.bookkeeping.batch import Call
from privguard.training.bookkeeping.factors import Factor, Full
from privguard.training.bookkeeping.registry import register_rule


@register_rule(nn.LayerNorm)
def layer_norm(call: Call) -> Iterator[tuple[str, Factor]]:
    """x̂ is normalised over the last dimensions."""
    shape = cast("nn.LayerNorm", call.module).normalized_shape
    if "weight" in call.wanted:
        normal = functional.layer_norm(call.x.float(), shape, None, None, cast("nn.LayerNorm", call.module).eps)
        yield "weight", Full(_leading(call.g * normal, call.batch, len(shape)))
    if "bias" in call.wanted:
        yield "bias", Full(_leading(call.g, call.batch, len(shape)))


@register_rule(nn.RMSNorm)
def rms_norm(call: Call) -> Iterator[tuple[str, Factor]]:
    """Torch's own: x̂ = x / rms(x) over the last dimensions, no shift."""
    module = cast("nn.RMSNorm", call.module)
    normal = functional.rms_norm(call.x.float(), module.normalized_shape, None, module.eps)
    yield "weight", Full(_leading(call.g * normal, call.batch, len(module.normalized_shape)))


def rms_norm_of_transformers(call: Call) -> Iterator[tuple[str, Factor]]:
    """The classes of Llama, T5, Gemma and their kin: x̂ = x · rsqrt(mean x² + ε) in float32, rounded, then scaled."""
    x = call.x.float()
    normal = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + cast("float", epsilon_of(call.module)))
    yield "weight", Full(_leading(call.g * normal.to(call.g.dtype), call.batch, 1))


def epsilon_of(module: nn.Module) -> float | None:
    """ε under the name that Llama or Gemma gives it, if it is a number."""
    found = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return found if isinstance(found, float) else None


@register_rule(nn.GroupNorm)
def group_norm(call: Call) -> Iterator[tuple[str, Factor]]:
    """x̂ is normalised over groups of channels."""
    module = cast("nn.GroupNorm", call.module)
    if "weight" in call.wanted:
        normal = functional.group_norm(call.x.float(), module.num_groups, None, None, module.eps)
        yield "weight", Full(_channels(call.g * normal, call.batch))
    if "bias" in call.wanted:
        yield "bias", Full(_channels(call.g, call.batch))


@register_rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm(call: Call) -> Iterator[tuple[str, Factor]]:
    """x̂ is normalised over the space of each channel."""
    module = cast("nn.InstanceNorm2d", call.module)
    if "weight" in call.wanted:
        normal = functional.instance_norm(call.x.float(), eps=module.eps)
        yield "weight", Full(_channels(call.g * normal, call.batch))
    if "bias" in call.wanted:
        yield "bias", Full(_channels(call.g, call.batch))


def _leading(values: Tensor, batch: int, dimensions: int) -> Tensor:
    """(B·k, …, *normalised) → (B, *normalised), summed over everything between."""
    kept = values.shape[values.dim() - dimensions :]
    return values.reshape(batch, values.numel() // (batch * kept.numel()), *kept).sum(1, dtype=torch.float32)


def _channels(values: Tensor, batch: int) -> Tensor:
    """(B·k, channels, *space) → (B, channels), summed over everything else."""
    rows, channels = len(values) // batch, values.shape[1]
    return values.reshape(batch, rows, channels, -1).sum((1, 3), dtype=torch.float32)
