# SPDX-License-Identifier: Apache-2.0
"""``nn.MultiheadAttention``: the same computation in pieces that can be listened to.

The module keeps its class, its parameters and their names; only its forward is written out, since torch's own uses the
projections behind their modules' backs.
"""

import math
from collections.abc import Iterator
from typing import Any, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from privguard.errors import UnsupportedModelError
from privguard.training.bookkeeping.batch import Call, Heard, Part
from privguard.training.bookkeeping.factors import Factor, Full, Outer
from privguard.training.bookkeeping.layers.linear import positions, total
from privguard.training.bookkeeping.registry import register_rewritten


@register_rewritten(nn.MultiheadAttention)
def attention(heard: Heard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Multi-head attention; arguments, results and options as in torch, inputs with a batch dimension."""
    return _forward(heard, *args, **kwargs)


def _forward(  # noqa: PLR0913, PLR0917 — torch's own signature
    heard: Heard,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,  # noqa: FBT001, FBT002
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,  # noqa: FBT001, FBT002
    is_causal: bool = False,  # noqa: FBT001, FBT002
) -> tuple[Tensor, Tensor | None]:
    module = cast("nn.MultiheadAttention", heard.tapped.module)
    if query.dim() != 3:  # noqa: PLR2004 — (B, T, E)
        raise UnsupportedModelError(
            f"module={heard.tapped.name!r}: query {tuple(query.shape)} has no batch dimension; pass (B, T, E)"
        )
    if not module.batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    q, k, v = _projections(heard, query, key, value)
    hint = is_causal and key_padding_mask is None and not need_weights  # torch takes the hint only here
    mask = None if hint else _mask(module, attn_mask, key_padding_mask, q.dtype, len(q))
    k, v, mask = _with_extra_keys(heard, module, k, v, mask)
    q, k, v = (x.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, H, T, E/H)
    dropout = module.dropout if module.training else 0.0
    if need_weights:
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        weights = (scores if mask is None else scores + mask).softmax(-1)
        weights = functional.dropout(weights, dropout) if dropout else weights
        mixed = weights @ v
        shown = weights.mean(1) if average_attn_weights else weights
    else:
        mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropout, hint)
        shown = None
    shift = cast("Tensor | None", module.out_proj.bias)
    bias = None if shift is None else Piece("out_proj.bias", shift)
    out = project(heard, mixed.transpose(1, 2).flatten(2), Piece("out_proj.weight", module.out_proj.weight), bias)
    return (out if module.batch_first else out.transpose(0, 1)), shown


@final
class Piece:
    """A parameter, or some rows of one, that takes part in a projection."""

    def __init__(self, local: str, parameter: Tensor, start: int | None = None, stop: int | None = None) -> None:
        self.local, self.value, self._rows = local, parameter.detach()[start:stop], (start, stop)

    def part(self, heard: Heard) -> Part | None:
        """What it is called in the model, if it is trainable."""
        name = heard.tapped.names.get(self.local)
        return None if name is None else Part(name, *self._rows)


def project(heard: Heard, x: Tensor, weight: Piece, bias: Piece | None) -> Tensor:
    """X Wᵀ + b, listened to; x (B, T, d)."""
    weights, biases = weight.part(heard), None if bias is None else bias.part(heard)

    def factors(call: Call) -> Iterator[tuple[Part, Factor]]:
        g = positions(call.g, call.batch)
        if weights is not None:
            yield weights, Outer(g, positions(call.x.to(g.dtype), call.batch))
        if biases is not None:
            yield biases, Full(total(g))

    x = heard.shared(x)
    return heard.tap(functional.linear(x, weight.value, None if bias is None else bias.value), kept=x, factors=factors)


def _projections(heard: Heard, *inputs: Tensor) -> Iterator[Tensor]:
    module = cast("Any", heard.tapped.module)
    width, whole, shift = module.embed_dim, module.in_proj_weight, module.in_proj_bias
    for place, (letter, x) in enumerate(zip("qkv", inputs, strict=True)):
        rows = place * width, (place + 1) * width
        apart = f"{letter}_proj_weight"
        weight = Piece(apart, getattr(module, apart)) if whole is None else Piece("in_proj_weight", whole, *rows)
        yield project(heard, x, weight, None if shift is None else Piece("in_proj_bias", shift, *rows))


def _mask(
    module: nn.MultiheadAttention, attn: Tensor | None, padding: Tensor | None, dtype: torch.dtype, batch: int
) -> Tensor | None:
    """Both masks as one that is added to the scores, broadcast to (B, heads, T, S)."""
    parts = [_additive(m, dtype) for m in (attn, padding) if m is not None]
    if attn is not None and attn.dim() == 3:  # noqa: PLR2004 — (B·heads, T, S)
        parts[0] = parts[0].unflatten(0, (batch, module.num_heads))
    if padding is not None:
        parts[-1] = parts[-1][:, None, None, :]
    return sum(parts[1:], parts[0]) if parts else None


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)
    return mask.to(dtype)


def _with_extra_keys(
    heard: Heard, module: nn.MultiheadAttention, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The learned key and value (``add_bias_kv``) and the zero ones (``add_zero_attn``) at the end of the sequence."""
    if module.bias_k is not None and module.bias_v is not None:
        k = torch.cat([k, _repeated(heard, "bias_k", module.bias_k)], 1)
        v = torch.cat([v, _repeated(heard, "bias_v", module.bias_v)], 1)
        mask = None if mask is None else functional.pad(mask, (0, 1))
    if module.add_zero_attn:
        k, v = (functional.pad(x, (0, 0, 0, 1)) for x in (k, v))
        mask = None if mask is None else functional.pad(mask, (0, 1))
    return k, v, mask


def _repeated(heard: Heard, name: str, parameter: Tensor) -> Tensor:
    def factors(call: Call) -> Iterator[tuple[str, Factor]]:
        if name in call.wanted:
            yield name, Full(call.g[:, None].float())  # (B, 1, 1, E)

    row = parameter.detach().expand(heard.batch.rows, 1, -1)
    return heard.tap(row, kept=row[:0], factors=factors)
