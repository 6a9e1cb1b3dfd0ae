"""Noise that is correlated over the steps of a plan with bands, on the integers of its grid.

Row t is k_t = rint(D_t·s·z_t - Σ_j w·k_{t-j}), with D the norms of the strategy's columns and w = c_j·D_t/D_{t-j}
(:mod:`privguard.accounting.bands`), so M·k = s·z up to the rounding, where M has columns of norm at most 1. Since
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
from privguard.training.noise.exact import Integers, Label, Row, draw_row
from privguard.training.noise.past import Past

_SLACK = 1 + 2.0**-40  # on the norms, so that rounding the weights leaves no column longer than 1


@final
@dataclass(frozen=True)
class Made:
    """The integers of one position by the label of their row, and their deviation over that of independent noise."""

    position: int
    rows: Mapping[Label, Integers]
    gain: float


@final
class Correlation:
    """The rows of the last b - 1 positions, and the next one; ``steps`` is the whole plan's, also of a resumed run."""

    def __init__(self, strategy: Sequence[float], *, steps: int) -> None:
        self._strategy = np.array(strategy)
        self._norms = bands.norms(tuple(strategy), steps=steps) * _SLACK
        self._inverse = bands.inverse(tuple(strategy), steps=steps)
        self._kept: dict[Label, NDArray[np.float64]] = {}  # a ring: position t is row t mod (b - 1)
        self._largest: dict[Label, NDArray[np.float64]] = {}
        self._positions: list[int] = []  # those that are kept, newest last
        self._first = 0
        self._layout: tuple[tuple[Label, tuple[str, ...], int], ...] | None = None
        self._deviation: float | None = None

    def draw(self, position: int, *, rows: Sequence[Row], deviation: float, source: Stream) -> Made:
        """The integers of ``position``, of which nothing is kept yet; equal calls give equal integers.

        ``deviation`` is that of independent noise, in steps of the grid.

        Raises:
            PrivacyError: not the position after the last one that was kept, or sum and noise are no longer those of
                the steps before.
        """
        self._require_next(position, rows, deviation)
        norm = float(self._norms[position])
        made: dict[Label, Integers] = {}
        for row in rows:
            if row.noisy:
                s = math.nextafter(norm * deviation, math.inf)
                child = source.child(*row.label)
                made[row.label] = draw_row(row.count, deviation=s, source=child, past=self._past(row.label, position))
        first = self._first if self._positions else position
        squares = float(np.sum(self._inverse[: position - first + 1] ** 2))
        return Made(position, made, norm * math.sqrt(squares))

    def keep(self, made: Made) -> None:
        """Keep the integers of a position, which are now part of what is released."""
        if not self._positions:
            self._first = made.position
        room = len(self._strategy) - 1
        slot = made.position % room
        for label, integers in made.rows.items():
            if label not in self._kept:
                self._kept[label] = np.zeros((room, len(integers)))
                self._largest[label] = np.zeros(room)
            self._kept[label][slot] = integers
            self._largest[label][slot] = float(max(integers.max(initial=0), -integers.min(initial=0)))
        self._positions = [*self._positions, made.position][-room:]

    def _past(self, label: Label, position: int) -> Past | None:
        """What row ``position`` takes back, and None where nothing is kept."""
        if not self._positions:
            return None
        weights = np.zeros(len(self._strategy) - 1)
        for earlier in self._positions:
            ratio = self._norms[position] / self._norms[earlier]
            weights[earlier % len(weights)] = self._strategy[position - earlier] * ratio
        return Past.of(self._kept[label], weights, largest=self._largest[label].tolist())

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
