"""What a row of correlated noise takes back of those before it: in float64 with a bound on its error, and exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

_U = 2.0**-53
_LARGEST = 2.0**52  # of an integer, and of what is taken back: float64 then holds every one, and every half


@final
@dataclass(frozen=True)
class Past:
    """Earlier rows of integers, shape (rows, coordinates) in float64, and the weight of each, shape (rows,).

    ``reach`` bounds the sum of the weights times the rows, in absolute value, over all coordinates.
    """

    rows: NDArray[np.float64]
    weights: NDArray[np.float64]
    reach: float

    @classmethod
    def of(cls, rows: NDArray[np.float64], weights: NDArray[np.float64], *, largest: Sequence[float]) -> "Past":
        """``largest`` is the largest absolute value in each row.

        Raises:
            ArithmeticError: float64 does not hold the integers.
        """
        reach = float(np.abs(weights) @ np.array(largest)) * (1 + 2.0**-40)
        if not (reach < _LARGEST and max(largest) < _LARGEST):
            raise ArithmeticError(f"reach={reach:g}: correlated noise leaves the integers of float64; plan less noise")
        return cls(rows, weights, reach)

    def error(self, s: float) -> float:
        """How far s·z - :meth:`block` can be off in float64, beyond the error of s·z.

        n products and their sum, in any order, lose at most n·u/(1 - n·u) of the sum of absolute values (Higham 2002,
        section 3.1), and the difference u of itself, where |z| < 9.4 for the 63 bits that are drawn.
        """
        return _U * ((len(self.weights) + 2) * self.reach + 10 * s)

    def block(self, first: int, stop: int) -> NDArray[np.float64]:
        """Σ w·k for the coordinates from ``first`` to ``stop``; zero beyond the end."""
        values = self.weights @ self.rows[:, first:stop]
        missing = stop - first - len(values)
        return np.append(values, np.zeros(missing)) if missing else values

    def closer(self, coordinates: NDArray[np.int64], s: float) -> tuple[NDArray[Any], NDArray[Any]]:
        """Σ w·k in the longest float there is, and how far s·z less it can be off; 0 beyond the end."""
        inside = coordinates < self.rows.shape[1]
        columns = self.rows[:, np.where(inside, coordinates, 0)].astype(np.longdouble) * inside
        products = columns * self.weights.astype(np.longdouble).reshape(-1, *[1] * coordinates.ndim)
        unit = float(np.finfo(np.longdouble).eps)
        return products.sum(0), unit * ((len(self.weights) + 2) * np.abs(products).sum(0) + 10 * s)

    def exactly(self, coordinate: int) -> Fraction:
        """Σ w·k for one coordinate; 0 beyond the end."""
        if coordinate >= self.rows.shape[1]:
            return Fraction(0)
        column = self.rows[:, coordinate].tolist()
        return sum((Fraction(w) * Fraction(k) for w, k in zip(self.weights.tolist(), column, strict=True)), Fraction(0))
