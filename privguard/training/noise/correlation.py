# SPDX-License-Identifier: Apache-2.0
"""Noise that is correlated over the steps of a plan with bands, on the integers of its grid.

Row t is k_t = rint(D_t·s·z_t - Σ_j w·k_{t-j}), with D the norms of the strategy's columns and w = c_j·D_t/D_{t-j}
(``privguard.accounting.bands``), rounded toward zero to a public grid (``past``); so
M·k = s·z up to the rounding of k, where M has columns of norm at most 1. Since
k = released - sum, what is released is a function of (M·sum + s·z)_t and of what was released before: the Gaussian
mechanism for M·sum, and post-processing. That holds for the integers that were added, whatever made them so; hence the
rows that are kept are these, and a doubt in the rounding is settled by further bits of z_t.

A kept row is as secret as the noise key: with it, what was released tells the sum. Rows are in memory alone, of one
process. A process that resumes a run begins without any, and M is then block diagonal, with columns that are no
longer; two futures of one snapshot never share a row.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from privguard._random import Stream
from privguard.accounting import bands
from privguard.errors import PrivacyError
from privguard.training.noise.exact import Label, Row, draw_row
from privguard.training.noise.past import Past, weight_digits

_SLACK = 1 + 2.0**-40  # on the norms, so that rounding the weights leaves no column longer than 1


@final
@dataclass(frozen=True)
class Made:
    """The integers of one position by the label of their row, and their deviation over that of independent noise.

    They are in float64, and the rows that are kept themselves: the position's until as many follow as there are bands.
    """

    rows: Mapping[Label, NDArray[np.float64]]
    gain: float


@final
class Correlation:
    """The rows of the last b - 1 positions, and the next one; ``steps`` is the whole plan's, also of a resumed run."""

    def __init__(self, strategy: Sequence[float], *, steps: int) -> None:
        self._strategy = np.array(strategy)
        self._norms = bands.norms(tuple(strategy), steps=steps) * _SLACK
        self._inverse = bands.inverse(tuple(strategy), steps=steps)
        self._peak = peak(strategy, steps=steps)
        self._kept: dict[Label, NDArray[np.float64]] = {}  # a ring: position t is row t mod (b - 1)
        self._largest: dict[Label, list[float]] = {}
        self._positions: list[int] = []  # those that are kept, newest last
        self._first = 0
        self._layout: tuple[tuple[Label, tuple[str, ...], int], ...] | None = None
        self._deviation: float | None = None

    def draw(self, position: int, *, rows: Sequence[Row], deviation: float, source: Stream) -> Made:
        """The integers of ``position``, which are kept from now on, in the place of the oldest ones.

        ``deviation`` is that of independent noise, in steps of the grid. A position is drawn once, whatever becomes of
        it: where nothing is released, its integers are as secret as any others.

        Raises:
            PrivacyError: not the position after the last one, or sum and noise are no longer those of the steps before.
        """
        self._require_next(position, rows, deviation)
        gain = self.gain(position)
        earlier, self._positions = self._positions, [*self._positions, position][1 - len(self._strategy) :]
        self._first = self._first if earlier else position
        weights, s = (
            self._weights(position, earlier),
            math.nextafter(float(self._norms[position]) * deviation, math.inf),
        )
        digits = weight_digits(self._peak * deviation, float(np.abs(self._strategy).sum()))
        made: dict[Label, NDArray[np.float64]] = {}
        for row in rows:
            if row.noisy:
                kept, largest = self._ring(row)
                past = Past.of(kept, weights, digits=digits, largest=largest) if earlier else None
                slot = position % len(kept)
                child = source.child(*row.label)
                largest[slot] = draw_row(kept[slot], deviation=s, source=child, past=past)
                made[row.label] = kept[slot]
        return Made(made, gain)

    def gain(self, position: int) -> float:
        """The deviation that the next position's noise will have, over that of independent noise."""
        first = self._first if self._positions else position
        squares = float(np.sum(self._inverse[: position - first + 1] ** 2))
        return float(self._norms[position]) * math.sqrt(squares)

    def _ring(self, row: Row) -> tuple[NDArray[np.float64], list[float]]:
        if row.label not in self._kept:
            room = len(self._strategy) - 1
            self._kept[row.label], self._largest[row.label] = np.zeros((room, row.count)), [0.0] * room
        return self._kept[row.label], self._largest[row.label]

    def _weights(self, position: int, earlier: Sequence[int]) -> NDArray[np.float64]:
        """What row ``position`` takes back of each row of the ring."""
        weights = np.zeros(len(self._strategy) - 1)
        for each in earlier:
            ratio = self._norms[position] / self._norms[each]
            weights[each % len(weights)] = self._strategy[position - each] * ratio
        return weights

    def _require_next(self, position: int, rows: Sequence[Row], deviation: float) -> None:
        layout = tuple((row.label, tuple(row.totals), row.count) for row in rows if row.noisy)
        if self._positions and position != self._positions[-1] + 1:
            raise PrivacyError(
                f"position={position}: expected {self._positions[-1] + 1}; rows of correlated noise follow each other"
            )
        if self._layout is not None and (layout, deviation) != (self._layout, self._deviation):
            raise PrivacyError(
                "parameters: names, sizes, ranks or the clipping bound changed within a run whose noise is correlated; "
                "freeze and add parameters before it, or plan with bands=1"
            )
        self._layout, self._deviation = layout, deviation


def peak(strategy: Sequence[float], *, steps: int) -> float:
    """The largest deviation of correlated noise in any step, over that of independent noise."""
    inverse = bands.inverse(tuple(strategy), steps=steps)
    return float((bands.norms(tuple(strategy), steps=steps) * np.sqrt(np.cumsum(inverse**2))).max())
