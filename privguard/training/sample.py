"""Poisson batches, cut into physical batches.

Poisson sampling is what the accountant prices: every record enters every step on its own coin, so the size of a batch
is random and secret. The coin of a record is one 64-bit word of a stream that belongs to one ledger position; no step
ever sees another step's words, and drawing a position again gives the same batch, which is how a clean resume continues
exactly.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import final

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard._random import Stream

_WORD = 1 << 64


@final
@dataclass(frozen=True)
class Poisson:
    """Independent inclusion of every record with probability ``rate``. Public facts only: the size is an argument."""

    rate: float

    def __post_init__(self) -> None:
        _check.probability("rate", self.rate, one=True)

    def draw(self, *, examples: int, source: Stream) -> NDArray[np.int64]:
        """Positions of the records that are in, ascending.

        Guarantee: each record is in with probability ⌊rate·2⁶⁴⌋/2⁶⁴, at most ``rate``, independently of all others.
        ``source`` must belong to one ledger position alone.
        """
        threshold = math.floor(Fraction(self.rate) * _WORD)
        if threshold == _WORD:
            return np.arange(examples)
        return np.flatnonzero(source.words(examples) < np.uint64(threshold))


@final
@dataclass(frozen=True)
class PhysicalBatch:
    """Rows that go forward together: ``records`` index the data set, ``mask`` is False where a row is padding.

    ``position`` is the ledger position of the logical batch, ``last`` says that the logical batch ends here.
    """

    position: int
    records: Sequence[int]
    mask: NDArray[np.bool_]
    last: bool


def cut(records: NDArray[np.int64], *, position: int, limit: int) -> Iterator[PhysicalBatch]:
    """Cut a logical batch into the fewest physical batches of at most ``limit`` rows, sizes equal to within one.

    An empty draw gives one batch of a single masked row (record 0 lends its shape), so that an empty step does what
    every other step does. Equal sizes cost less than full batches with a padded rest: a draw just above ``limit`` gives
    two halves.
    """
    if len(records) == 0:
        yield PhysicalBatch(position, [0], np.zeros(1, bool), last=True)
        return
    pieces = np.array_split(records, -(-len(records) // limit))
    for number, piece in enumerate(pieces, start=1):
        yield PhysicalBatch(position, piece.tolist(), np.ones(len(piece), bool), last=number == len(pieces))
