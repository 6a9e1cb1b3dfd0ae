"""How a parameter's per-example gradients are written down without being formed.

Each use of a parameter gives a *factor*: :class:`Outer` (a linear layer: Gᵢ = Rᵢᵀ Cᵢ), :class:`Lookup` (a table: rows
of Gᵢ named by ids) or :class:`Full` (Gᵢ itself, where it is small). :func:`gather` turns all uses of one parameter in a
batch into one gradient that knows its norms and its weighted sum. Uses are put together *before* the norm is taken: the
norm of a sum is not the sum of norms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Outer:
    """Gᵢ = rowsᵢᵀ colsᵢ, summed over T positions; rows (B, T, p), cols (B, T, d), parameter (p, d)."""

    rows: Tensor
    cols: Tensor


@final
@dataclass(frozen=True)
class Lookup:
    """Row idsᵢₜ of Gᵢ receives colsᵢₜ; ids (B, T) int64, −1 for padding, cols (B, T, d), parameter (p, d)."""

    ids: Tensor
    cols: Tensor


@final
@dataclass(frozen=True)
class Full:
    """Gᵢ itself; values (B, *parameter.shape)."""

    values: Tensor


Factor = Outer | Lookup | Full


class Gradient(Protocol):
    """The per-example gradients of one parameter in one batch."""

    def square_norms(self) -> Tensor:
        """‖Gᵢ‖², shape (B,), float64."""
        ...

    def add_weighted(self, weights: Tensor, into: Tensor) -> None:
        """Add Σᵢ weightsᵢ Gᵢ to ``into``; rows whose weight is zero may hold NaN or infinity only after `silence`."""
        ...

    def silence(self, bad: Tensor) -> None:
        """Replace the examples of the (B,) mask by zeros, since 0 · NaN is NaN."""
        ...


@final
class Instantiated:
    """Per-example gradients that are kept whole."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.reshape(len(values), -1)  # (B, p·d)

    def square_norms(self) -> Tensor:
        """See :meth:`Gradient.square_norms`."""
        return torch.linalg.vector_norm(self._values, dim=1).double().square()

    def silence(self, bad: Tensor) -> None:
        """See :meth:`Gradient.silence`."""
        self._values = self._values.masked_fill(bad[:, None], 0)

    def add_weighted(self, weights: Tensor, into: Tensor) -> None:
        """See :meth:`Gradient.add_weighted`."""
        into.view(-1).addmv_(self._values.t(), weights)


@final
class Product:
    """An outer factor kept as it is: the norm from Gram matrices (Li et al. 2021, "ghost clipping")."""

    def __init__(self, factor: Outer) -> None:
        self._rows, self._cols = factor.rows, factor.cols

    def square_norms(self) -> Tensor:
        """See :meth:`Gradient.square_norms`."""
        if self._rows.shape[1] == 1:
            row, col = (torch.linalg.vector_norm(x, dim=(1, 2)).double() for x in (self._rows, self._cols))
            return (row * col).square()
        grams = [torch.bmm(x, x.transpose(1, 2)) for x in (self._rows, self._cols)]
        return grams[0].mul_(grams[1]).sum((1, 2), dtype=torch.float64).clamp(min=0)

    def silence(self, bad: Tensor) -> None:
        """See :meth:`Gradient.silence`."""
        self._rows, self._cols = (x.masked_fill(bad[:, None, None], 0) for x in (self._rows, self._cols))

    def add_weighted(self, weights: Tensor, into: Tensor) -> None:
        """See :meth:`Gradient.add_weighted`."""
        rows, cols = self._rows, self._cols
        if rows.shape[2] <= cols.shape[2]:
            rows = rows * weights[:, None, None]
        else:
            cols = cols * weights[:, None, None]
        into.addmm_(rows.reshape(-1, rows.shape[2]).t(), cols.reshape(-1, cols.shape[2]))


@final
class SparseRows:
    """The gradient of a table: only the rows that an example looked up, each once."""

    def __init__(self, factor: Lookup) -> None:
        batch, width = len(factor.ids), factor.cols.shape[-1]
        ids, example = factor.ids.flatten(), torch.arange(batch, device=factor.ids.device)
        used = ids >= 0
        key = (example.repeat_interleave(factor.ids.shape[1]) << 32 | ids)[used]  # one key per (example, id)
        keys, place = key.unique(return_inverse=True)
        self.ids, self.example, self._batch = keys & 0xFFFFFFFF, keys >> 32, batch
        cols = factor.cols.reshape(-1, width)
        self.values = cols.new_zeros(len(keys), width).index_add_(0, place, cols if used.all() else cols[used])

    def square_norms(self) -> Tensor:
        """See :meth:`Gradient.square_norms`."""
        squares = torch.linalg.vector_norm(self.values, dim=1).double().square()
        return squares.new_zeros(self._batch).index_add_(0, self.example, squares)

    def silence(self, bad: Tensor) -> None:
        """See :meth:`Gradient.silence`."""
        self.values = self.values.masked_fill(bad[self.example, None], 0)

    def add_weighted(self, weights: Tensor, into: Tensor) -> None:
        """See :meth:`Gradient.add_weighted`."""
        into.index_add_(0, self.ids, self.values * weights[self.example, None])


@final
class Tied:
    """A table that is also an output layer: both gradients in one parameter, with their cross term."""

    def __init__(self, table: Lookup, output: Outer) -> None:
        self._table, self._output, self._factor = SparseRows(table), Product(output), output

    def square_norms(self) -> Tensor:
        """See :meth:`Gradient.square_norms`; ‖a + b‖² = ‖a‖² + ‖b‖² + 2⟨a, b⟩."""
        return (self._table.square_norms() + self._output.square_norms() + 2 * self._cross()).clamp(min=0)

    def _cross(self) -> Tensor:
        """⟨table, output⟩ = Σ over looked-up rows v and positions s of rows[s, v] · ⟨cols[s], table[v]⟩."""
        table, rows, cols = self._table, self._factor.rows, self._factor.cols
        cross = rows.new_zeros(len(rows), dtype=torch.float64)
        for index in range(len(rows)):
            mine = table.example == index
            picked = rows[index].index_select(1, table.ids[mine])  # (T, rows looked up)
            cross[index] = (picked * (cols[index] @ table.values[mine].t())).sum(dtype=torch.float64)
        return cross

    def silence(self, bad: Tensor) -> None:
        """See :meth:`Gradient.silence`."""
        self._table.silence(bad)
        self._output.silence(bad)

    def add_weighted(self, weights: Tensor, into: Tensor) -> None:
        """See :meth:`Gradient.add_weighted`."""
        self._table.add_weighted(weights, into)
        self._output.add_weighted(weights, into)


def gather(factors: Sequence[Factor], shape: torch.Size, *, budget: int) -> Gradient:
    """One gradient from all uses of a parameter of this shape; ``budget`` is how many numbers may be instantiated."""
    outer = _join([f for f in factors if isinstance(f, Outer)])
    table = _concatenate([f for f in factors if isinstance(f, Lookup)])
    full = [f.values for f in factors if isinstance(f, Full)]
    if not full:
        if table is not None:
            return SparseRows(table) if outer is None else Tied(table, outer)
        assert outer is not None  # noqa: S101 — there is at least one factor
        if not _worth_instantiating(outer, shape, budget):
            return Product(outer)
    if outer is not None:
        full.append(torch.bmm(outer.rows.transpose(1, 2), outer.cols).view(-1, *shape))
    if table is not None:
        full.append(_scatter(table, shape))
    return Instantiated(torch.stack(full).sum(0) if len(full) > 1 else full[0])


def _worth_instantiating(outer: Outer, shape: torch.Size, budget: int) -> bool:
    batch, length, _ = outer.rows.shape
    return length > 1 and length * sum(shape) > shape.numel() and batch * shape.numel() <= budget


def _join(outers: Sequence[Outer]) -> Outer | None:
    if len(outers) < 2:  # noqa: PLR2004 — nothing to join
        return outers[0] if outers else None
    return Outer(torch.cat([o.rows for o in outers], 1), torch.cat([o.cols for o in outers], 1))


def _concatenate(tables: Sequence[Lookup]) -> Lookup | None:
    if len(tables) < 2:  # noqa: PLR2004 — nothing to join
        return tables[0] if tables else None
    return Lookup(torch.cat([t.ids for t in tables], 1), torch.cat([t.cols for t in tables], 1))


def _scatter(table: Lookup, shape: torch.Size) -> Tensor:
    full = table.cols.new_zeros(len(table.ids), *shape)
    index = table.ids.clamp(min=0)[..., None].expand_as(table.cols)
    return full.scatter_add_(1, index, table.cols.masked_fill((table.ids < 0)[..., None], 0))
