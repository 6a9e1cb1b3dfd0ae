# SPDX-License-Identifier: Apache-2.0
"""The per-example gradients of one parameter: their norms, and their weighted sum.

Where Gᵢ is formed, its norm is the norm of what is added. Where it is not (``Product``), ‖Gᵢ‖² comes from two Gram
matrices (Li et al. 2021, "ghost clipping"), a sum of signed terms that can cancel: its float32 error is a multiple of
2⁻²⁴ U², U = Σₜ‖rₜ‖‖cₜ‖, however small the norm is. So a norm comes with its *slack*, a bound on that error, and an
example whose slack is not small is settled in float64.

Sums go over examples in float64 alone. Float32 touches one example at a time (``.products``), so no rounding depends
on which other examples are there, and their number does not multiply it: docs/spec/mechanism-v1.md has the bound.
"""

import itertools
from collections.abc import Iterator
from typing import Protocol, final

import torch
from torch import Tensor

from privguard.training.bookkeeping.products import add_products, add_rows, times

ROUNDING = 2.0**-24  # of one float32 operation
KAPPA = 8.0  # worst seen error of a Gram norm is 7.04 ROUNDING · U², over the adversarial inputs of the tests
_TINY = 2.0**-126  # a float32 square below this is lost
_LAST = 1e-5  # slack of a float64 Gram norm ÷ the norm above which even that is not good enough
_STRETCH = 1024  # numbers whose squares float32 adds up: it rounds their norm by at most 3.1e-5
_CHUNK = 1 << 22  # numbers of a float64 gradient formed at once: 32 MiB


class Gradient(Protocol):
    """The per-example gradients of one parameter in one batch."""

    def square_norms(self) -> tuple[Tensor, Tensor | None]:
        """‖Gᵢ‖² and its slack, each (B,) float64; no slack where the norm is the norm of what is added."""
        ...

    def settle(self, which: Tensor) -> Tensor:
        """‖Gᵢ‖² of a few examples, (len(which),) float64, never below the truth and without slack."""
        ...

    def isolate(self, which: Tensor) -> None:
        """Add these examples in float64, apart from the others: float32 would round them by more than allowed."""
        ...

    def silence(self, bad: Tensor) -> None:
        """Replace the examples of the (B,) mask by zeros, since 0 · NaN is NaN."""
        ...

    def add_weighted(self, weights: Tensor, into: Tensor) -> None:
        """Add Σᵢ weightsᵢ Gᵢ to ``into``; both are float64, weights (B,)."""
        ...


def square_lengths(x: Tensor) -> Tensor:
    """‖xᵢ‖² of float32 rows (B, n), float64 (B,), never more than a relative 6.2e-5 below the truth but for underflow.

    Where float32 adds up n squares, the error is a multiple of n.
    """
    edge = x.shape[1] - x.shape[1] % _STRETCH
    parts = [x[:, edge:], *([x[:, :edge].unflatten(1, (-1, _STRETCH))] if edge else [])]
    squares = [torch.linalg.vector_norm(part, dim=-1).double().square() for part in parts]
    return squares[0] + squares[1].sum(1) if edge else squares[0]


@final
class Instantiated:
    """Per-example gradients that are kept whole, in pieces of one or more examples (b, *parameter.shape)."""

    def __init__(self, pieces: tuple[Tensor, ...]) -> None:
        self._pieces = [piece.reshape(len(piece), -1) for piece in pieces]  # (b, p·d)

    def square_norms(self) -> tuple[Tensor, Tensor | None]:
        """See ``Gradient.square_norms``."""
        squares = torch.cat([square_lengths(piece) for piece in self._pieces])
        return squares, torch.full_like(squares, _TINY * self._pieces[0].shape[1])

    def settle(self, which: Tensor) -> Tensor:
        """See ``Gradient.settle``; what is added is what was measured."""
        norms = [torch.linalg.vector_norm(piece, dim=1, dtype=torch.float64) for piece in self._pieces]
        return torch.cat(norms).square()[which]

    def isolate(self, which: Tensor) -> None:
        """See ``Gradient.isolate``; nothing to do, they are added in float64 anyway."""

    def silence(self, bad: Tensor) -> None:
        """See ``Gradient.silence``."""
        parts = bad.split([len(piece) for piece in self._pieces])
        self._pieces = [piece.masked_fill(part[:, None], 0) for piece, part in zip(self._pieces, parts, strict=True)]

    def add_weighted(self, weights: Tensor, into: Tensor) -> None:
        """See ``Gradient.add_weighted``."""
        parts = weights.split([len(piece) for piece in self._pieces])
        for piece, part in zip(self._pieces, parts, strict=True):
            add_rows(piece, part, into.view(-1))


def gram(x: Tensor) -> Tensor:
    """⟨xₛ, xₜ⟩ for all pairs of positions: (B, T, d) → (B, T, T)."""
    return torch.bmm(x, x.transpose(1, 2))


@final
class Inputs:
    """What the products of one batch share: query, key and value have the same input.

    The last input's Gram matrices and its weighted copy are kept; it must not change meanwhile.
    """

    def __init__(self) -> None:
        self._gram: tuple[Tensor, Tensor] | None = None
        self._weighted: tuple[Tensor, Tensor, Tensor] | None = None

    def gram(self, x: Tensor) -> Tensor:
        """The Gram matrices of ``x``."""
        if self._gram is None or not _is_same(self._gram[0], x):
            self._gram = x, gram(x)
        return self._gram[1]

    def weighted(self, x: Tensor, weights: Tensor) -> Tensor:
        """Each example of ``x`` (B, T, d) times its weight, in the type of the weights."""
        kept = self._weighted
        if kept is None or not _is_same(kept[0], x) or kept[1] is not weights:
            self._weighted = kept = x, weights, times(x, weights)
        return kept[2]


def _is_same(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors are one piece of memory seen in one way."""
    return one.data_ptr() == two.data_ptr() and one.shape == two.shape and one.stride() == two.stride()


@final
class Product:
    """Gᵢ = rowsᵢᵀ colsᵢ, never formed; rows (B, T, p), cols (B, T, d)."""

    def __init__(self, rows: Tensor, cols: Tensor, *, inputs: Inputs | None = None) -> None:
        self.rows, self.cols = rows, cols
        self._inputs = inputs or Inputs()
        self.lengths: Tensor | None = None  # U, (B,) float64
        self._isolated: list[int] = []

    def square_norms(self) -> tuple[Tensor, Tensor | None]:
        """See ``Gradient.square_norms``."""
        if self.rows.shape[1] == 1:
            row, col = (square_lengths(x[:, 0]) for x in (self.rows, self.cols))
            lost = _TINY * (self.rows.shape[2] * col + self.cols.shape[2] * row)
            return row * col, lost
        row, col = gram(self.rows), self._inputs.gram(self.cols)  # (B, T, T)
        squares = (row * col).sum((1, 2), dtype=torch.float64)
        row, col = (x.diagonal(dim1=1, dim2=2) for x in (row, col))  # (B, T)
        self.lengths = (row * col).sqrt().sum(1, dtype=torch.float64)
        lost = (
            _TINY
            * row.shape[1] ** 2
            * sum(width * x.amax(1).double() for width, x in ((self.rows.shape[2], col), (self.cols.shape[2], row)))
        )
        return squares, KAPPA * ROUNDING * self.lengths.square() + lost

    def settle(self, which: Tensor) -> Tensor:
        """See ``Gradient.settle``."""
        found: list[Tensor | float] = []
        for index in which.tolist():
            row, col = self.rows[index].double(), self.cols[index].double()
            grams = row @ row.t(), col @ col.t()
            lengths = (grams[0].diagonal() * grams[1].diagonal()).sqrt().sum()
            square, slack = (grams[0] * grams[1]).sum(), KAPPA * 2.0**-53 * lengths.square()
            if slack > _LAST * square:
                square, slack = sum(piece.square().sum() for _, piece in self._formed(index)), 0.0
            found.append(square + slack)
        return torch.stack([torch.as_tensor(f, dtype=torch.float64) for f in found]).to(self.rows.device)

    def isolate(self, which: Tensor) -> None:
        """See ``Gradient.isolate``; a single position cannot cancel."""
        self._isolated = which.tolist() if self.rows.shape[1] > 1 else []

    def silence(self, bad: Tensor) -> None:
        """See ``Gradient.silence``."""
        self.rows, self.cols = (x.masked_fill(bad[:, None, None], 0) for x in (self.rows, self.cols))

    def add_weighted(self, weights: Tensor, into: Tensor) -> None:
        """See ``Gradient.add_weighted``."""
        together = weights
        if self._isolated:
            together = weights.index_fill(0, torch.tensor(self._isolated, device=weights.device), 0)
        add_products(self.rows, self.cols, together, into, weighted=self._inputs.weighted)
        for index in self._isolated:
            for rows, piece in self._formed(index):
                into[rows] += float(weights[index]) * piece

    def _formed(self, index: int) -> Iterator[tuple[slice, Tensor]]:
        """One example's gradient in float64, some rows at a time."""
        row, col = self.rows[index].double(), self.cols[index].double()
        step = max(1, _CHUNK // col.shape[1])
        for start in range(0, row.shape[1], step):
            yield slice(start, start + step), row[:, start : start + step].t() @ col


@final
class SparseRows:
    """The gradient of a table: only the rows that an example looked up, each once.

    ids (B, T) int64, −1 where nothing was looked up; cols (B, T, d).
    """

    def __init__(self, ids: Tensor, cols: Tensor) -> None:
        self._batch, width = len(ids), cols.shape[-1]
        example = torch.arange(self._batch, device=ids.device).repeat_interleave(ids.shape[1])
        flat, used = ids.flatten(), ids.flatten() >= 0
        key, cols = example << 32 | flat, cols.reshape(-1, width)
        if not used.all():
            key, cols = key[used], cols[used]
        keys, place = key.unique(return_inverse=True)  # sorted, so by example
        self.ids, self.example = keys & 0xFFFFFFFF, keys >> 32
        self.values = cols.new_zeros(len(keys), width).index_add_(0, place, cols)

    def square_norms(self) -> tuple[Tensor, Tensor | None]:
        """See ``Gradient.square_norms``."""
        squares = self.per_example(square_lengths(self.values))
        return squares, _TINY * self.per_example(
            torch.full_like(self.example, self.values.shape[1], dtype=torch.float64)
        )

    def per_example(self, values: Tensor) -> Tensor:
        """Sum a value of each row over the rows of each example, (B,)."""
        return values.new_zeros(self._batch).index_add_(0, self.example, values)

    def places(self) -> list[slice]:
        """Where each example's rows lie, which follow each other: the host asks the device once, not B times."""
        edges = torch.searchsorted(self.example, torch.arange(self._batch + 1, device=self.example.device))
        return [slice(start, end) for start, end in itertools.pairwise(edges.tolist())]

    def settle(self, which: Tensor) -> Tensor:
        """See ``Gradient.settle``."""
        return self.per_example(torch.linalg.vector_norm(self.values, dim=1, dtype=torch.float64).square())[which]

    def isolate(self, which: Tensor) -> None:
        """See ``Gradient.isolate``; nothing to do, what is added is what was measured."""

    def silence(self, bad: Tensor) -> None:
        """See ``Gradient.silence``."""
        self.values = self.values.masked_fill(bad[self.example, None], 0)

    def add_weighted(self, weights: Tensor, into: Tensor) -> None:
        """See ``Gradient.add_weighted``."""
        into.index_add_(0, self.ids, times(self.values, weights[self.example]))


@final
class Tied:
    """A table that is also an output layer: both gradients in one parameter, with their cross term."""

    def __init__(self, table: SparseRows, output: Product) -> None:
        self._table, self._output = table, output
        self._places = table.places()

    def square_norms(self) -> tuple[Tensor, Tensor | None]:
        """See ``Gradient.square_norms``; ‖a + b‖² = ‖a‖² + ‖b‖² + 2⟨a, b⟩."""
        table, _ = self._table.square_norms()
        output, lost = self._output.square_norms()
        lengths = self._output.lengths
        if lengths is None:  # one position: ‖b‖ is its own length
            lengths = output.sqrt()
        lengths = lengths + self._table.per_example(torch.linalg.vector_norm(self._table.values, dim=1).double())
        cross = torch.stack([self._cross(i, torch.float32) for i in range(len(output))])
        return table + output + 2 * cross, (0 if lost is None else lost) + KAPPA * ROUNDING * lengths.square()

    def settle(self, which: Tensor) -> Tensor:
        """See ``Gradient.settle``."""
        cross = torch.stack([self._cross(i, torch.float64) for i in which.tolist()])
        squares = self._table.settle(which) + self._output.settle(which) + 2 * cross
        return squares.clamp(min=0)

    def _cross(self, index: int, dtype: torch.dtype) -> Tensor:
        """⟨table, output⟩ = Σ over looked-up rows v and positions s of rows[s, v] · ⟨cols[s], table[v]⟩."""
        mine = self._places[index]
        picked = self._output.rows[index].index_select(1, self._table.ids[mine]).to(dtype)  # (T, rows looked up)
        return (picked * (self._output.cols[index].to(dtype) @ self._table.values[mine].to(dtype).t())).sum().double()

    def isolate(self, which: Tensor) -> None:
        """See ``Gradient.isolate``."""
        self._output.isolate(which)

    def silence(self, bad: Tensor) -> None:
        """See ``Gradient.silence``."""
        self._table.silence(bad)
        self._output.silence(bad)

    def add_weighted(self, weights: Tensor, into: Tensor) -> None:
        """See ``Gradient.add_weighted``."""
        self._output.add_weighted(weights, into)
        self._table.add_weighted(weights, into)
