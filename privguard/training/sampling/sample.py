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
    """Units that go forward together: ``records`` index the data set, ``mask`` is False where a unit is padding.

    ``position`` is the ledger position of the logical batch, ``last`` says that the logical batch ends here. A unit is
    an example, or a user with ``len(records) / len(mask)`` rows, of which ``kept`` (one bool for each row) tells the
    true ones from fillers; None means that all are true.
    """

    position: int
    records: Sequence[int]
    mask: NDArray[np.bool_]
    last: bool
    kept: NDArray[np.bool_] | None = None


def cut(
    records: NDArray[np.int64], *, position: int, limit: int, rank: int = 0, ranks: int = 1
) -> Iterator[PhysicalBatch]:
    """Cut this rank's share of a logical batch into physical batches of at most ``limit`` rows.

    All ranks get the same, least number of batches, and sizes that are equal to within one over all of them. Where
    there is nothing to share, a batch is a single masked row (record 0 lends its shape), so that an empty step does
    what every other step does. Equal sizes cost less than full batches with a padded rest: a draw just above ``limit``
    gives two halves.
    """
    rounds = max(1, -(-len(records) // (limit * ranks)))
    pieces = np.array_split(records, rounds * ranks)[rank::ranks]
    for number, piece in enumerate(pieces, start=1):
        empty = len(piece) == 0
        mask = np.zeros(1, bool) if empty else np.ones(len(piece), bool)
        yield PhysicalBatch(position, [0] if empty else piece.tolist(), mask, last=number == rounds)
