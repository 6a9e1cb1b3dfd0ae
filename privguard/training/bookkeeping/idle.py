# SPDX-License-Identifier: Apache-2.0
"""Positions that add nothing to a product are left out of it, exactly.

A classifier that reads one position of a sequence sends back a gradient for that position alone, and so do most layers
of its last block: of T outer products in Gᵢ = Σₜ rₜ cₜᵀ all but one are zero. Likewise for tokens that only pad.
"""

import torch
from torch import Tensor


def without_idle(rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    """The positions of each example that are not idle, in their order: (B, T, p) and (B, T, d) → (B, k, ·).

    A position is idle where one side is zero and the other finite. ``k`` is what the busiest example needs, so the
    others may keep idle ones. Where that would not halve the work, or a GPU would have to be waited for, the two come
    back as they are.
    """
    length = rows.shape[1]
    if rows.device.type != "cpu" or length == 1 or _most(_busy(rows[:1], cols[:1])) > length // 2:
        return rows, cols  # one example tells, and costs a 2000th of a weight's gradient
    busy = _busy(rows, cols)
    most = max(1, _most(busy))
    if most > length // 2:
        return rows, cols
    chosen = busy.byte().argsort(dim=1, descending=True, stable=True)[:, :most]  # (B, k)
    example = torch.arange(len(rows))[:, None]
    return rows[example, chosen], cols[example, chosen]


def _busy(rows: Tensor, cols: Tensor) -> Tensor:
    """Where neither side is zero, or one that is meets NaN or infinity, (B, T)."""
    row, col = (torch.maximum(x.amax(2), -x.amin(2)) for x in (rows, cols))  # the largest: nothing underflows, no copy
    return ((row != 0) & (col != 0)) | ~(row.isfinite() & col.isfinite())


def _most(busy: Tensor) -> int:
    return int(busy.sum(1).max())
