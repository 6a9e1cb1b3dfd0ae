# SPDX-License-Identifier: Apache-2.0
"""Users as the unit of privacy: who owns which records, and which of them enter a step.

A user enters a step on one coin, with at most ``most`` records, chosen by chance and not by content. Each user's rows
go forward side by side. Either their mean loss is one unit of the clipper, or each record is one, with an equal share
of the bound (``EqualShares``); both ways one user moves the clipped sum by at most the clipping norm, whatever
their number of records.
"""

from collections.abc import Hashable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from privguard import _check
from privguard._random import Stream
from privguard.errors import PrivacyError
from privguard.training.clip import ClippedSum, Clipper
from privguard.training.sampling.sample import PhysicalBatch


@final
class Users:
    """Records grouped by the user they belong to; ``most`` records of each enter a step.

    ``apart`` says that each record is clipped by itself.
    """

    def __init__(self, ids: Iterable[Hashable], *, most: int, apart: bool = False) -> None:
        self.most, self.apart = _check.count("most", most), apart
        owned: dict[Hashable, list[int]] = {}
        kinds = set[type]()
        for record, user in enumerate(ids):
            name = _told_apart(user)
            kinds.add(type(name))
            owned.setdefault(name, []).append(record)
        if len(kinds) > 1:
            raise PrivacyError(
                f"user ids: of types {sorted(kind.__name__ for kind in kinds)}, so one user may have two names (7 and "
                "'7'); make them all of one type"
            )
        _check.require(bool(owned), "ids", "()", wanted="one user for each record")
        self._owned = [np.array(records, np.int64) for records in owned.values()]

    def __len__(self) -> int:
        return len(self._owned)

    def expand(self, batch: PhysicalBatch, source: Stream) -> PhysicalBatch:
        """The same users with ``most`` rows for each of them; fewer records are filled up with copies of the last one.

        Fillers are False in ``kept``: they go forward for their shape alone, and count for nothing.

        Args:
            batch: users as records.
            source: the stream that chooses among a user's records.
        """
        chosen = [self._choose(user, source) for user in batch.records]
        kept = np.concatenate([np.arange(self.most) < len(records) for records in chosen])
        rows = np.concatenate([np.pad(records, (0, self.most - len(records)), mode="edge") for records in chosen])
        return replace(batch, records=rows.tolist(), kept=kept)

    def _choose(self, user: int, source: Stream) -> NDArray[np.int64]:
        """Which records of a user enter the step, ascending: all, or ``most`` of them with equal chance."""
        records = self._owned[user]
        if len(records) <= self.most:
            return records
        words = source.child("records of user", user).words(len(records))
        return np.sort(records[np.argsort(words)[: self.most]])


def _told_apart(user: Hashable) -> Hashable:
    """A user's name, which is equal in all records of this user and in no other's.

    Raises:
        PrivacyError: it is missing, or equal to nothing but itself, so that each record would count as a user.
    """
    name = user.item() if isinstance(user, Tensor) else user
    if name is None or name != name:  # noqa: PLR0124 — NaN
        raise PrivacyError(
            f"user id {name!r}: a record without an owner cannot be protected as a user's; leave such records out, or "
            "give each an owner"
        )
    if type(name).__hash__ is object.__hash__:
        raise PrivacyError(
            f"user ids: {type(name).__name__} objects are equal to nothing but themselves, so each record would count "
            "as a user of its own; pass strings or whole numbers"
        )
    return name


@final
class EqualShares:
    """A clipper whose units are records, each clipped to an equal share of what their user may contribute.

    Guarantee: at most ``most`` records of a user enter a step, each moves the sum by at most the bound of ``each``, so
    together (triangle inequality) they move it by at most ``most`` times that, which is the bound of what is taken.
    Compared with one clip of a user's mean, a record that is far off cannot turn the others' direction, and users with
    few records weigh less.
    """

    def __init__(self, each: Clipper, *, most: int) -> None:
        self._each, self._most = each, most
        self.rows, self.checks, self.unchecked = each.rows, each.checks, each.unchecked
        self.shape_term = each.shape_term

    def begin(self, mask: Tensor, *, rows_each: int = 1, shapes: Hashable = ()) -> None:
        """See ``Clipper.begin``; a unit is a record."""
        self._each.begin(mask, rows_each=rows_each, shapes=shapes)

    def backward(self, losses: Tensor) -> None:
        """See ``Clipper.backward``; one loss for each record."""
        self._each.backward(losses)

    def take(self) -> ClippedSum:
        """See ``Clipper.take``; the bound is a user's."""
        clipped = self._each.take()
        return replace(clipped, l2_bound=self._most * clipped.l2_bound)

    def close(self) -> None:
        """See ``Clipper.close``."""
        self._each.close()

    def unclipped(self) -> AbstractContextManager[None]:
        """See ``Clipper.unclipped``."""
        return self._each.unclipped()

    def rehearsal(self, size: int) -> AbstractContextManager[None]:
        """See ``Clipper.rehearsal``."""
        return self._each.rehearsal(size)
