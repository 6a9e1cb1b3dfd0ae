# SPDX-License-Identifier: Apache-2.0
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
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard._random import Stream

_WORD = 1 << 64


class Sampler(Protocol):
    """Who takes part in the step of a ledger position."""

    def draw(self, *, examples: int, source: Stream, position: int) -> NDArray[np.int64]:
        """Positions of the records that are in, ascending; ``source`` belongs to this ledger position alone.

        Args:
            examples: the number of records in the data set; it may be secret.
            source: the stream of randomness of this ledger position.
            position: the ledger position of the step.
        """
        ...


@final
@dataclass(frozen=True)
class Poisson:
    """Independent inclusion of every record with probability ``rate``. Public facts only: the size is an argument."""

    rate: float

    def __post_init__(self) -> None:
        _check.probability("rate", self.rate, one=True)

    def draw(self, *, examples: int, source: Stream, position: int = 0) -> NDArray[np.int64]:  # noqa: ARG002
        """Positions of the records that are in, ascending; the same for every ``position``.

        Guarantee: each record is in with probability ⌊rate·2⁶⁴⌋/2⁶⁴, at most ``rate``, independently of all others.
        ``source`` must belong to one ledger position alone.

        Args:
            examples: the number of records in the data set; it may be secret.
            source: the stream of randomness of this ledger position.
            position: the ledger position of the step.
        """
        threshold = math.floor(Fraction(self.rate) * _WORD)
        if threshold == _WORD:
            return np.arange(examples)
        return np.flatnonzero(source.words(examples) < np.uint64(threshold))


@final
@dataclass(frozen=True)
class CyclicPoisson:
    """Step t draws from group t mod ``bands`` alone, each record of it with probability ``rate``.

    Guarantee: a record's group is a word of its own of ``groups``, so it depends on no other record, as adding or
    removing one demands; groups of equal size, or by index, do not have this. Two steps that a record enters are at
    least ``bands`` apart, as long as ``groups`` stays the same. A group has 1/bands of the records to within 2⁻⁶⁴
    bands, and what is priced holds for each group.
    """

    rate: float
    bands: int
    groups: Stream

    def __post_init__(self) -> None:
        _check.probability("rate", self.rate, one=True)
        _check.count("bands", self.bands)

    def draw(self, *, examples: int, source: Stream, position: int) -> NDArray[np.int64]:
        """Positions of the records that are in, ascending; see ``Poisson`` for the coins.

        Args:
            examples: the number of records in the data set; it may be secret.
            source: the stream of randomness of this ledger position.
            position: the ledger position of the step.
        """
        drawn = Poisson(self.rate).draw(examples=examples, source=source)
        group = self.groups.words(examples)[drawn] % np.uint64(self.bands)
        return drawn[group == position % self.bands]


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

    Args:
        records: positions of the records that were drawn, (n,).
        position: the ledger position of the step.
        limit: the most rows of one physical batch, on one rank.
        rank: this process, from 0.
        ranks: how many processes share the logical batch.
    """
    rounds = max(1, -(-len(records) // (limit * ranks)))
    pieces = np.array_split(records, rounds * ranks)[rank::ranks]
    for number, piece in enumerate(pieces, start=1):
        empty = len(piece) == 0
        mask = np.zeros(1, bool) if empty else np.ones(len(piece), bool)
        yield PhysicalBatch(position, [0] if empty else piece.tolist(), mask, last=number == rounds)
