"""Users as the unit of privacy: who owns which records, and which of them enter a step.

A user enters a step on one coin, with at most ``most`` records, chosen by chance and not by content. Each user's rows
go forward side by side and their mean loss is one unit of the clipper, so one user moves the clipped sum by at most the
clipping norm, whatever their number of records.
"""

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard._random import Stream
from privguard.training.sample import PhysicalBatch


@final
class Users:
    """Records grouped by the user they belong to; ``most`` records of each enter a step."""

    def __init__(self, ids: Iterable[Hashable], *, most: int) -> None:
        self.most = _check.count("most", most)
        owned: dict[Hashable, list[int]] = {}
        for record, user in enumerate(ids):
            owned.setdefault(user, []).append(record)
        _check.require(bool(owned), "ids", "()", wanted="one user for each record")
        self._owned = [np.array(records, np.int64) for records in owned.values()]

    def __len__(self) -> int:
        return len(self._owned)

    def expand(self, batch: PhysicalBatch, source: Stream) -> PhysicalBatch:
        """The same batch with ``most`` rows for each user; a user with fewer records fills up with their first one."""
        chosen = [self._choose(user, source) for user in batch.records]
        kept = np.concatenate([np.arange(self.most) < len(records) for records in chosen])
        rows = np.concatenate([np.pad(records, (0, self.most - len(records)), mode="edge") for records in chosen])
        return replace(batch, records=rows.tolist(), kept=kept)

    def _choose(self, user: int, source: Stream) -> NDArray[np.int64]:
        records = self._owned[user]
        if len(records) <= self.most:
            return records
        words = source.child("records of user", user).words(len(records))
        return np.sort(records[np.argsort(words)[: self.most]])
