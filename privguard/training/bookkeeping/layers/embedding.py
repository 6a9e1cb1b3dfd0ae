# SPDX-License-Identifier: Apache-2.0
"""Tables looked up by id."""

from collections.abc import Iterator
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from privguard.errors import UnsupportedModelError
from privguard.training.bookkeeping.batch import Call, Heard
from privguard.training.bookkeeping.factors import Factor, Lookup
from privguard.training.bookkeeping.registry import register_rewritten


def embedding(call: Call) -> Iterator[tuple[str, Factor]]:
    """Y = W[ids]; the padding row receives nothing."""
    module = cast("nn.Embedding", call.module)
    ids = call.x.reshape(call.batch, -1)
    if module.padding_idx is not None:
        ids = ids.masked_fill(ids == module.padding_idx, -1)
    yield "weight", Lookup(ids, call.g.reshape(*ids.shape, -1))


@final
class Positions:
    """Tells a one-dimensional lookup of one id per example, (B,), from one that all examples share, (T,).

    The two cannot be told apart by shape when T = B. What was seen at another batch size decides (the probe makes sure
    that two are seen); where nothing was, ids that count 0, 1, 2, … are refused rather than guessed about.
    """

    def __init__(self) -> None:
        self._shared: bool | None = None
        self._sizes: set[int] = set()

    def __call__(self, heard: Heard, ids: Tensor) -> Tensor:
        """``ids``, with a dimension for the examples put in front where they share it."""
        batch = heard.batch.rows
        if ids.dim() != 1 or batch == 1:
            return heard.shared(ids)
        if len(ids) != batch:
            self._learn(heard, shared=True)
        else:
            self._sizes.add(batch)
            if self._shared is None and len(self._sizes) > 1:
                self._learn(heard, shared=False)
            if self._shared is None and torch.equal(ids, torch.arange(batch, device=ids.device)):
                raise UnsupportedModelError(
                    f"module={heard.tapped.name!r}: ids of shape ({batch},) may be one for each of {batch} examples or "
                    f"{batch} positions that all examples share; write positions as (1, T), with ids.unsqueeze(0)"
                )
        return ids.expand(batch, len(ids)) if self._shared else ids

    def _learn(self, heard: Heard, *, shared: bool) -> None:
        if self._shared not in {None, shared}:
            raise UnsupportedModelError(
                f"module={heard.tapped.name!r}: one-dimensional ids are sometimes one for each example and sometimes "
                "shared; write shared ones as (1, T), with ids.unsqueeze(0)"
            )
        self._shared = shared


@register_rewritten(nn.EmbeddingBag)
def embedding_bag(heard: Heard, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Y = Σ or mean of W[ids] over each bag; bags as rows (B, T), or one-dimensional ids with offsets."""
    tapped, module = heard.tapped, cast("nn.EmbeddingBag", heard.tapped.module)
    named = dict(zip(("input", "offsets", "per_sample_weights"), args, strict=False)) | kwargs
    if module.mode == "max":
        raise UnsupportedModelError(
            f"module={tapped.name!r}: EmbeddingBag with mode='max' has no rule; use sum or mean"
        )
    ids, factor = _bags(module, named["input"], named.get("offsets"), named.get("per_sample_weights"))

    def factors(call: Call) -> Iterator[tuple[str, Factor]]:
        cols = call.g[:, None, :] * factor[..., None].to(call.g.dtype)
        yield "weight", Lookup(call.x.reshape(call.batch, -1), cols.reshape(call.batch, -1, call.g.shape[-1]))

    module.weight.requires_grad = False
    try:
        output = tapped.original(*args, **kwargs)
    finally:
        module.weight.requires_grad = True
    return heard.tap(output, kept=ids, factors=factors)


def _bags(
    module: nn.EmbeddingBag, ids: Tensor, offsets: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Ids of each bag in a row, −1 where there is none, and the factor with which each enters the bag's value."""
    scale = torch.ones_like(ids, dtype=module.weight.dtype) if weights is None else weights.detach()
    if ids.dim() == 1 and offsets is not None:
        ids, scale = _rows(ids, scale, offsets[:-1] if module.include_last_offset else offsets)
    if module.padding_idx is not None:
        ids = ids.masked_fill(ids == module.padding_idx, -1)
    if module.mode == "mean":
        scale = scale / (ids >= 0).sum(1, keepdim=True).clamp(min=1)
    return ids, scale


def _rows(ids: Tensor, scale: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    ends = torch.cat([offsets[1:], offsets.new_tensor([len(ids)])])
    lengths = ends - offsets
    column = torch.arange(int(lengths.max()), device=ids.device)
    inside = column < lengths[:, None]
    place = (offsets[:, None] + column).clamp(max=len(ids) - 1)
    return ids[place].masked_fill(~inside, -1), scale[place]
