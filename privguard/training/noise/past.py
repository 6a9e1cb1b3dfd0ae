# SPDX-License-Identifier: Apache-2.0
"""What a row of correlated noise takes back of those before it: weights on a grid, so that float64 loses nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from privguard.errors import PrivacyError

_U = 2.0**-53
_EXACT = 2.0**53  # multiples of g up to 2⁵³·g add up in float64 without rounding, in any order
_LARGEST = 2.0**52  # of an integer, and of what is taken back: float64 then holds every one, and every half
_FAR = 16  # deviations that no integer of a run reaches, but with probability 1e-57 each
_FINEST, _COARSEST = 40, 8  # binary digits of a weight


def weight_digits(deviation: float, total: float) -> int:
    """Binary digits p of weights whose sum is at most ``total``, so that weights times integers add up exactly.

    ``deviation`` is the largest of any row of integers. Both are public numbers, so the weights are.

    Raises:
        PrivacyError: fewer digits are left than a plan's coefficients need.
    """
    digits = math.floor(math.log2(_EXACT / (_FAR * deviation * total)))
    if digits < _COARSEST:
        raise PrivacyError(
            f"deviation={deviation:g} grid steps: sums of correlated noise leave the integers of float64; plan less "
            "noise, fewer ranks or fewer bands"
        )
    return min(digits, _FINEST)


@final
@dataclass(frozen=True)
class Past:
    """Earlier rows of integers, shape (rows, coordinates) in float64, and the weight of each, shape (rows,).

    The weights are multiples of 2 to the power of -``digits``. ``reach`` bounds the sum of the weights times the rows,
    in absolute value, over all coordinates.
    """

    rows: NDArray[np.float64]
    weights: NDArray[np.float64]
    digits: int
    reach: float

    @classmethod
    def of(
        cls, rows: NDArray[np.float64], weights: NDArray[np.float64], *, digits: int, largest: Sequence[float]
    ) -> "Past":
        """The past of a row, with ``weights`` rounded toward zero; ``largest`` is the largest absolute value of each.

        Raises:
            ArithmeticError: float64 does not hold the integers.
        """
        rounded = np.trunc(weights * 2.0**digits) * 2.0**-digits
        reach = float(np.abs(rounded) @ np.array(largest)) * (1 + 2.0**-40)
        if not (reach < _LARGEST and max(largest) < _LARGEST):
            raise ArithmeticError(f"reach={reach:g}: correlated noise leaves the integers of float64; plan less noise")
        return cls(rows, rounded, digits, reach)

    @property
    def lost(self) -> float:
        """How far ``block`` can be off: not at all, unless rows are larger than any are.

        Then by n·u/(1 - n·u) of the sum of absolute values (Higham 2002, section 3.1).
        """
        exact = self.reach * 2.0**self.digits <= _EXACT
        return 0.0 if exact else _U * (len(self.weights) + 1) * self.reach

    def block(self, first: int, *, into: NDArray[np.float64]) -> None:
        """Overwrite ``into`` with Σ w·k for the coordinates from ``first`` on; zero beyond the end."""
        rows = self.rows[:, first : first + len(into)]
        np.matmul(self.weights, rows, out=into[: rows.shape[1]])
        into[rows.shape[1] :] = 0

    def exactly(self, coordinate: int) -> Fraction:
        """Σ w·k for one coordinate; 0 beyond the end."""
        if coordinate >= self.rows.shape[1]:
            return Fraction(0)
        column: list[Any] = self.rows[:, coordinate].tolist()
        return sum((Fraction(w) * Fraction(k) for w, k in zip(self.weights.tolist(), column, strict=True)), Fraction(0))
