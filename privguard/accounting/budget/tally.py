# SPDX-License-Identifier: Apache-2.0
"""What one run reserved, began and settled in a budget book: the counts behind a balance."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, final

from privguard.accounting import events
from privguard.attest.statement import Identity, SigningKey
from privguard.records import Record

if TYPE_CHECKING:
    from dp_accounting import DpEvent


@final
@dataclass(frozen=True, kw_only=True)
class Balance(Record):
    """Events of a run: ``reserved`` = ``spent`` + ``open`` + ``returned``, always."""

    reserved: int
    spent: int
    open: int
    returned: int


@final
@dataclass(frozen=True, kw_only=True)
class Writer:
    """Who reserves, and what for.

    Attributes:
        key: the run's own key, which signs its rows and begins its events one by one; without it, what is reserved
            counts as begun at once.
        team: whose share it is, where a data set is shared out.
        purpose: what for, for people to read.
    """

    key: SigningKey | None = None
    team: str = ""
    purpose: str = ""


@final
@dataclass(frozen=True)
class Block:
    """Equal events that were reserved together, at ``time`` (UTC, ISO 8601)."""

    first: int
    times: int
    event: Mapping[str, Any]
    time: str


@final
@dataclass
class Run:
    """What one run reserved, and up to where it has begun and settled.

    ``key`` signs the run's rows; without one, only officers give anything back. ``begun`` is the first position that is
    certain not to have taken effect: nobody settles below it. ``ledger`` is the newest head of the run's ledger that
    was noted here, with the number of lines it stands for. ``rows`` counts the rows about this run.
    """

    data_set: str
    key: Identity | None = None
    team: str = ""
    blocks: list[Block] = field(default_factory=list[Block])
    position: int = 0
    begun: int = 0
    settled: int = 0
    reserved: int = 0
    returned: int = 0
    rows: int = 0
    ledger: tuple[str, int] | None = None

    @property
    def floor(self) -> int:
        """The least that the run can be settled at: what it began, or settled before, was spent."""
        return max(self.begun, self.settled)

    def add(self, block: Block) -> None:
        """Take in the next events.

        Args:
            block: the events of one reservation.
        """
        self.blocks.append(block)
        self.position += block.times
        self.reserved += block.times

    def settle(self, used: int) -> None:
        """Drop what lies beyond the first ``used`` events.

        Args:
            used: the first event that is dropped.
        """
        self.blocks = [
            replace(block, times=min(block.times, used - block.first)) for block in self.blocks if block.first < used
        ]
        self.returned += self.position - used
        self.position = self.settled = used

    def until(self, time: str) -> "Run":
        """The run as far as it was reserved by a time, to look at.

        Args:
            time: in ISO 8601, UTC.
        """
        return replace(self, blocks=[block for block in self.blocks if block.time <= time])

    def spent(self, *, since: str = "") -> "list[tuple[DpEvent, int]]":
        """All that counts as spent: what was used, and what is still open; or what of it was reserved since a time.

        Args:
            since: a time in ISO 8601, UTC; empty for the whole life.
        """
        return [(events.from_json(block.event), block.times) for block in self.blocks if block.time >= since]

    def balance(self) -> Balance:
        """The events by what became of them."""
        spent, still_open = self.settled, self.position - self.settled
        return Balance(reserved=self.reserved, spent=spent, open=still_open, returned=self.returned)
