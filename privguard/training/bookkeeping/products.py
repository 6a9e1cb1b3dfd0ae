# SPDX-License-Identifier: Apache-2.0
"""Σᵢ weightᵢ Gᵢ in float64, at nearly the price of float32: what is rounded in float32 is one example's alone.

A float32 product over a whole batch rounds by as much as all its examples together can make it, so that one example
could move the sum by far more than its own gradient. Here the sum over examples is in float64 throughout, and of the
sum over one example's positions at most ``LONGEST`` at a time are added up in float32. (Cutting physical batches by
a keyed word for each record would bound the rounding as well, but by the square of a batch's size: 5e-4 of the clipping
norm for 64 examples of one position, 3 for sixteen images.)
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

_TINY = 2.0**-126  # the smallest normal float32
LONGEST = 128  # positions whose products float32 adds up
_SHORT = 16  # up to so many positions a float64 product is quicker
_SMALL = 1 << 18  # multiplications of an example, below which calling for each one costs more
_TOGETHER = 1 << 13  # positions that one float64 product adds up
_CACHED = 1 << 17  # numbers of a product that, with their float64 sum, stay in a core's cache (1.5 MiB)
_ON_DEVICE = 1 << 26  # numbers of products that a device holds at once


def add_rows(rows: Tensor, weights: Tensor, into: Tensor) -> None:
    """Add Σᵢ weightsᵢ rowsᵢ to ``into``; rows (B, n) float32, weights (B,) and into (n,) float64."""
    size = _CACHED // 2 if rows.device.type == "cpu" else _ON_DEVICE
    width = max(64, size // max(1, len(rows)))
    converted = torch.empty(len(rows), min(width, rows.shape[1]), dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[1], width):
        part = rows[:, start : start + width]
        into[start : start + width].addmv_(converted[:, : part.shape[1]].copy_(part).t(), weights)


def times(x: Tensor, weights: Tensor) -> Tensor:
    """Each example of ``x`` (B, …) float32 times its weight, in the type of the weights.

    Converted first: on a CPU a product of mixed types takes 1.6 times as long.
    """
    return x.to(weights.dtype, copy=True).mul_(weights.view(-1, *[1] * (x.dim() - 1)))


def add_products(
    rows: Tensor, cols: Tensor, weights: Tensor, into: Tensor, *, weighted: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Add Σᵢ weightsᵢ rowsᵢᵀ colsᵢ to ``into``.

    Shapes: rows (B, T, p) and cols (B, T, d) float32, weights (B,) and into (p, d) float64. ``weighted`` multiplies
    examples by weights, and may remember it for cols.
    """
    length, height, width = rows.shape[1], rows.shape[2], cols.shape[2]
    alone = length > _SHORT and length * height * width > _SMALL
    if alone:
        weights = weights.float().masked_fill_(weights < _TINY, 0)  # what has few bits left may be half too large
    if height < width:
        rows = times(rows, weights)
    else:
        cols = weighted(cols, weights)
    if not alone:
        _in_float64(rows, cols, into)
    elif into.device.type == "cpu":
        _one_by_one(rows, cols, into)
    else:
        _side_by_side(rows, cols, into)


def _in_float64(rows: Tensor, cols: Tensor, into: Tensor) -> None:
    if rows.shape[1] == 1:
        into.addmm_(rows[:, 0].double().t(), cols[:, 0].double())
        return
    step = max(1, _TOGETHER // max(1, rows.shape[1]))
    for some, others in zip(rows.split(step), cols.split(step), strict=True):
        into += some.flatten(0, 1).double().t() @ others.flatten(0, 1).double()


def _one_by_one(rows: Tensor, cols: Tensor, into: Tensor) -> None:
    """On the host: one product for each example, in pieces that are added while they lie in the cache."""
    height = max(1, min(into.shape[0], _CACHED // into.shape[1]))
    product, total = torch.empty(height, into.shape[1]), np.empty((height, into.shape[1]))
    for start in range(0, into.shape[0], height):
        target = into[start : start + height].numpy()
        piece, whole = product[: len(target)], total[: len(target)]
        added = piece.numpy()
        stretches = _stretches(rows[:, :, start : start + height], cols)
        pairs = [zip(x.transpose(1, 2).unbind(), y.unbind(), strict=True) for x, y in stretches]
        for first, *others in zip(*pairs, strict=True):
            torch.mm(*first, out=piece)
            if not others:
                np.add(target, added, out=target)
                continue
            np.copyto(whole, added)
            for pair in others:
                torch.mm(*pair, out=piece)
                np.add(whole, added, out=whole)
            np.add(target, whole, out=target)


def _side_by_side(rows: Tensor, cols: Tensor, into: Tensor) -> None:
    """On a device: the products of some examples at once, since a call for each would keep it waiting."""
    height = max(1, min(into.shape[0], _ON_DEVICE // into.shape[1]))
    step = max(1, _ON_DEVICE // (height * into.shape[1]))
    for start in range(0, into.shape[0], height):
        for some, others in zip(rows[:, :, start : start + height].split(step), cols.split(step), strict=True):
            for x, y in _stretches(some, others):
                into[start : start + height] += torch.bmm(x.transpose(1, 2), y).sum(0, dtype=torch.float64)


def _stretches(rows: Tensor, cols: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions, the last dimension but one, in stretches of which each is a float32 product of its own."""
    return zip(rows.split(LONGEST, -2), cols.split(LONGEST, -2), strict=True)
