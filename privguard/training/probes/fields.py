# SPDX-License-Identifier: Apache-2.0
"""Synthetic batches: of a real batch's structure, shapes and types, with none of its numbers."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from privguard.training import structure as trees


@final
@dataclass(frozen=True)
class Field:
    """What one tensor of a batch looks like for one example, as public facts.

    Attributes:
        shape: without the dimension of the examples.
        dtype: of the tensor.
        top: for whole numbers, one more than the largest that may be drawn: the size of the vocabulary, the number of
            classes, 2 for a mask. It has to be public.
        ignore: a value that means "nothing here", such as −100 in labels; about a third of the places get it, but never
            the last place of every other example, whose gradient would be zero and show nothing.
        unit: real numbers lie between 0 and 1, where a loss takes some of them for the number of a class.
        scale: what other real numbers are multiplied by.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    top: int = 2
    ignore: int | None = None
    unit: bool = False
    scale: float = 1.0

    @property
    def numel(self) -> int:
        """How many values an example has."""
        return math.prod(self.shape)

    @property
    def whole_numbers(self) -> bool:
        """Whether values are integers that may hold labels, and no mask of bools."""
        return not (self.dtype.is_floating_point or self.dtype.is_complex or self.dtype == torch.bool)

    def draw(self, rows: int, *, source: torch.Generator) -> Tensor:
        """Synthetic values for ``rows`` examples: normal, or uniform whole numbers below ``top``.

        Args:
            rows: how many examples.
            source: the generator that draws.
        """
        if self.dtype.is_floating_point:
            drawn = torch.rand if self.unit else torch.randn
            values = drawn(rows, *self.shape, generator=source)
            return (values if self.unit else self.scale * values).to(self.dtype)
        values = torch.randint(self.top, (rows, *self.shape), generator=source).to(self.dtype)
        if self.ignore is not None:
            ignored = torch.rand(rows, self.numel, generator=source) < 1 / 3
            ignored[::2, -1:] = False
            values[ignored.view_as(values)] = self.ignore
        return values


@final
@dataclass(frozen=True)
class Listed:
    """A list with one value for each example, of which ``value`` is one: names, for instance."""

    value: Any


Structure = Any
"""A batch with a ``Field`` in the place of each tensor, in containers of any kind."""


def is_field(value: Any) -> bool:
    """Whether this stands for something that is drawn.

    Args:
        value: any leaf of a structure.
    """
    return isinstance(value, Field | Listed)


def structure_of(
    batch: Any, *, tops: Mapping[str, int] | None = None, top: int = 2, rows: int | None = None
) -> Structure:
    """The shapes and types of a collated batch.

    Args:
        batch: containers of tensors whose dimension 0 is the example.
        tops: ``Field.top`` by dictionary key.
        top: the same for whole numbers elsewhere.
        rows: how many examples the batch has; where it is given, a list of so many values that are no tensors holds one
            for each example.
    """

    def listed(value: Any) -> bool:
        plain = isinstance(value, list | tuple) and len(value) == rows
        return plain and not any(isinstance(item, Tensor) for item in trees.leaves(value))

    def described(leaf: Any, name: str) -> Any:
        if isinstance(leaf, Tensor):
            return Field(tuple(leaf.shape[1:]), leaf.dtype, (tops or {}).get(name, top))
        return Listed(leaf[0]) if listed(leaf) else leaf

    return trees.named(described, batch, whole=listed)


def make(structure: Structure, rows: int, *, seed: int, device: torch.device) -> Any:
    """A synthetic batch of ``rows`` examples on ``device``: the structure with drawn values in the place of each field.

    Equal seeds give equal batches.

    Args:
        structure: a batch with a field in the place of each tensor.
        rows: how many examples.
        seed: of the generator that draws.
        device: where the tensors are made.
    """
    source = torch.Generator().manual_seed(seed)

    def drawn(leaf: Any) -> Any:
        if isinstance(leaf, Field):
            return leaf.draw(rows, source=source).to(device)
        return [leaf.value] * rows if isinstance(leaf, Listed) else leaf

    return trees.mapped(drawn, structure, whole=is_field)


def companies(structure: Structure, rows: int, *, device: torch.device) -> Iterator[Any]:
    """Batches of other records, far from and near to zero: beside them an example's rank by its loss is another.

    Args:
        structure: a batch with a field in the place of each tensor.
        rows: how many examples.
        device: where the tensors are made.
    """
    for seed, scale in enumerate((10.0, 0.1, 3.0, 0.01), start=6):
        scaled = trees.mapped(
            lambda leaf, scale=scale: replace(leaf, scale=scale) if isinstance(leaf, Field) else leaf,
            structure,
            whole=is_field,
        )
        yield make(scaled, rows, seed=seed, device=device)


def first_rows(batch: Any, rows: int, *, of: int) -> Any:
    """The first ``rows`` of a batch of ``of`` examples.

    Args:
        batch: a batch of any structure.
        rows: how many examples.
        of: how many examples the batch has.
    """

    def cut(leaf: Any) -> Any:
        return leaf[:rows] if _is_by_example(leaf, of) else leaf

    return trees.mapped(cut, batch, whole=lambda value: isinstance(value, list) and _is_by_example(value, of))


def exchanged(batch: Any, other: Any, row: int) -> Any:
    """``batch`` with the record of one row taken from ``other``.

    Args:
        batch: a batch of any structure.
        other: a batch of the same structure and size.
        row: an example's place, from 0.
    """

    def with_row(leaf: Any, theirs: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0:
            return leaf
        mixed = leaf.clone()
        mixed[row] = theirs[row]
        return mixed

    return trees.paired(with_row, batch, other)


def repeated(batch: Any, row: int) -> Any:
    """A batch in which every example is this one.

    Args:
        batch: a batch of any structure.
        row: an example's place, from 0.
    """
    return trees.tensors_mapped(lambda t: t[row : row + 1].expand_as(t).clone() if t.ndim else t, batch)


def swapped(batch: Any, row: int, other: int) -> Any:
    """The batch with two examples in each other's place.

    Args:
        batch: a batch of any structure.
        row: an example's place, from 0.
        other: the place of the other example.
    """

    def with_rows(leaf: Tensor) -> Tensor:
        if leaf.ndim == 0:
            return leaf
        rows = leaf.clone()
        rows[row], rows[other] = leaf[other], leaf[row]
        return rows

    return trees.tensors_mapped(with_rows, batch)


def in_float32(batch: Any) -> Any:
    """The same batch, its 16-bit numbers as float32.

    Args:
        batch: a batch of any structure.
    """
    return trees.tensors_mapped(
        lambda tensor: tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor, batch
    )


def _is_by_example(leaf: Any, rows: int) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.ndim > 0 and len(leaf) == rows
    return isinstance(leaf, list) and len(leaf) == rows and not trees.tensors(leaf)
