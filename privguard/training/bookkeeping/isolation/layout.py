# SPDX-License-Identifier: Apache-2.0
"""Which dimension of a tensor is the examples', learned from two synthetic batches.

A shape does not tell: (6, 3, d) may be six tokens of three examples or six examples of three tokens, and the mask of
nine windows looks like nine examples. Two batches that differ in their size alone do tell, because the dimension of the
examples is the one that follows the size. Without them, dimension 0 is taken for it.
"""

from typing import Any, Final, final

from torch import Size, Tensor
from torch.utils import _pytree as pytree

SHARED: Final = -1
"""In place of a dimension: all examples have this tensor in common."""

_Shapes = list[Size | None]
_Call = tuple[_Shapes, _Shapes]
_Axes = tuple[list[int | None], list[int | None]]
_SIZES = 2  # of batches, that it takes to tell


@final
class Layout:
    """Of the tensors that one module takes and gives, each by its place among the leaves of arguments or results."""

    def __init__(self) -> None:
        self._seen: dict[int, list[_Call]] = {}
        self._learned: _Axes | None = None

    def forget(self, size: int) -> None:
        """Start anew with batches of ``size`` examples."""
        self._seen.pop(size, None)
        self._learned = None

    @property
    def learned(self) -> bool:
        """Whether two sizes were seen."""
        return len(self._seen) >= _SIZES

    def note(self, size: int, taken: Any, given: Any) -> None:
        """One call of the module in a batch of ``size`` examples."""
        self._seen.setdefault(size, []).append((_shapes(taken), _shapes(given)))
        self._learned = None

    def taken(self, leaves: int) -> list[int | None]:
        """The examples' dimension of each of so many arguments, ``SHARED``, or None where nothing is known."""
        if any(len(taken) != leaves for calls in self._seen.values() for taken, _ in calls):
            return [None] * leaves  # called in another way
        return [self._axis(0, place) for place in range(leaves)]

    def given(self, place: int = 0) -> int | None:
        """The same of a result."""
        return self._axis(1, place)

    def _axis(self, side: int, place: int) -> int | None:
        if len(self._seen) < _SIZES:
            return None
        if self._learned is None:
            self._learned = self._compared(0), self._compared(1)
        known = self._learned[side]
        return known[place] if place < len(known) else None

    def _compared(self, side: int) -> list[int | None]:
        """What all calls agree about."""
        one, two = list(self._seen)[:_SIZES]
        calls = zip(self._seen[one], self._seen[two], strict=False)
        found = [[_follows(a, b, one, two) for a, b in zip(x[side], y[side], strict=False)] for x, y in calls]
        places = zip(*found, strict=False)
        return [axes[0] if len(set(axes)) == 1 else None for axes in places]


def _shapes(tree: Any) -> _Shapes:
    return [leaf.shape if isinstance(leaf, Tensor) else None for leaf in pytree.tree_leaves(tree)]


def _follows(one: Size | None, two: Size | None, rows_of_one: int, rows_of_two: int) -> int | None:
    """The dimension that is in proportion to the number of examples."""
    if one is None or two is None or len(one) != len(two):
        return None
    for place, (a, b) in enumerate(zip(one, two, strict=True)):
        if a and a * rows_of_two == b * rows_of_one:
            return place
    return SHARED if one == two else None
