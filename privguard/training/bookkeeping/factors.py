# SPDX-License-Identifier: Apache-2.0
"""How a use of a parameter is written down without forming its per-example gradients."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from privguard.training.bookkeeping.gradients import Gradient, Inputs, Instantiated, Product, SparseRows, Tied
from privguard.training.bookkeeping.idle import without_idle


@final
@dataclass(frozen=True)
class Outer:
    """Gᵢ = rowsᵢᵀ colsᵢ, summed over T positions; rows (B, T, p), cols (B, T, d), parameter (p, d)."""

    rows: Tensor
    cols: Tensor

    def lean(self) -> "Outer":
        """The same without the positions that add nothing."""
        return Outer(*without_idle(self.rows, self.cols))


@final
@dataclass(frozen=True)
class Lookup:
    """Row idsᵢₜ of Gᵢ receives colsᵢₜ; ids (B, T) int64, −1 for padding, cols (B, T, d), parameter (p, d)."""

    ids: Tensor
    cols: Tensor


@final
@dataclass(frozen=True)
class Full:
    """Gᵢ itself; values (B, *parameter.shape), float32."""

    values: Tensor


@final
@dataclass(frozen=True)
class Pieces:
    """Gᵢ itself, in pieces of (b, *parameter.shape) that lie apart in memory: putting them together may cost more."""

    values: tuple[Tensor, ...]


Factor = Outer | Lookup | Full | Pieces


def gather(factors: Sequence[Factor], shape: torch.Size, *, budget: int, inputs: Inputs) -> Gradient:
    """One gradient from all uses of a parameter of this shape; ``budget`` is how many numbers may be instantiated.

    Uses are put together *before* the norm is taken: the norm of a sum is not the sum of norms.
    """
    outer = _join([f for f in factors if isinstance(f, Outer)])
    table = _concatenate([f for f in factors if isinstance(f, Lookup)])
    if len(factors) == 1 and isinstance(factors[0], Pieces):
        return Instantiated(factors[0].values)
    full = [f.values if isinstance(f, Full) else torch.cat(f.values) for f in factors if isinstance(f, Full | Pieces)]
    if not full and table is not None:
        rows = SparseRows(table.ids, table.cols.float())
        return rows if outer is None else Tied(rows, Product(outer.rows.float(), outer.cols.float(), inputs=inputs))
    if not full and outer is not None and not _worth_instantiating(outer, shape, budget):
        return Product(outer.rows.float(), outer.cols.float(), inputs=inputs)
    if outer is not None:
        full.append(torch.bmm(outer.rows.float().transpose(1, 2), outer.cols.float()).view(-1, *shape))
    if table is not None:
        full.append(_scatter(table, shape))
    return Instantiated((_sum(full),))


def _worth_instantiating(outer: Outer, shape: torch.Size, budget: int) -> bool:
    """Gram matrices cost T²(p + d) per example, forming the gradient T·p·d."""
    batch, length, _ = outer.rows.shape
    return length > 1 and length * sum(shape) > shape.numel() and batch * shape.numel() <= budget


def _sum(values: Sequence[Tensor]) -> Tensor:
    first, *others = values
    return sum(others[1:], first + others[0]) if others else first


def _join(outers: Sequence[Outer]) -> Outer | None:
    if len(outers) > 1:
        return Outer(torch.cat([o.rows for o in outers], 1), torch.cat([o.cols for o in outers], 1))
    return outers[0] if outers else None


def _concatenate(tables: Sequence[Lookup]) -> Lookup | None:
    if len(tables) > 1:
        return Lookup(torch.cat([t.ids for t in tables], 1), torch.cat([t.cols for t in tables], 1))
    return tables[0] if tables else None


def _scatter(table: Lookup, shape: torch.Size) -> Tensor:
    full = torch.zeros(len(table.ids), *shape, device=table.cols.device)
    index = table.ids.clamp(min=0)[..., None].expand_as(table.cols)
    return full.scatter_add_(1, index, table.cols.float().masked_fill((table.ids < 0)[..., None], 0))
