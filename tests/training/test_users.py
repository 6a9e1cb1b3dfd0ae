# SPDX-License-Identifier: Apache-2.0
"""Users as units: how many records of each enter a step, and which."""

from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from privguard._random import Stream
from privguard.errors import PrivacyError
from privguard.training.sampling.sample import PhysicalBatch
from privguard.training.sampling.users import Users

OWNERS = ["ann"] * 7 + ["bob"] * 2 + ["eve"] * 3
STREAM = Stream.from_insecure_seed(11, "users")


def drawn(position: int) -> tuple[list[list[int]], list[list[bool]]]:
    """The rows of all three users at one ledger position, and which of them are true."""
    batch = PhysicalBatch(position, [0, 1, 2], np.ones(3, bool), last=True)
    wide = Users(OWNERS, most=3).expand(batch, STREAM.child(position))
    assert wide.kept is not None
    return np.reshape(wide.records, (3, 3)).tolist(), wide.kept.reshape(3, 3).tolist()


def test_a_user_enters_with_the_stated_number_of_their_own_records():
    for position in range(50):
        rows, kept = drawn(position)
        assert len(set(rows[0])) == 3
        assert set(rows[0]) <= set(range(7))
        assert rows[1:] == [[7, 8, 8], [9, 10, 11]]  # who has fewer fills up
        assert kept == [[True] * 3, [True, True, False], [True] * 3]


def test_every_record_of_a_user_enters_as_often_as_every_other():
    """2,000 positions, each record in with probability 3/7; bounds that a true draw leaves once in a million."""
    counts = Counter(record for position in range(2000) for record in drawn(position)[0][0])
    low, high = stats.binom.ppf([1e-7, 1 - 1e-7], 2000, 3 / 7)
    assert all(low <= counts[record] <= high for record in range(7)), counts


def test_a_position_drawn_again_gives_the_same_records():
    assert drawn(4) == drawn(4)
    assert len({tuple(drawn(position)[0][0]) for position in range(20)}) > 5


def test_ids_are_compared_by_what_they_say():
    """A tensor is equal to nothing but itself: each record would be a user of its own, with a bound of its own."""
    assert len(Users(torch.tensor([4, 4, 7, 4]), most=2)) == 2
    assert len(Users(np.array([4, 4, 7, 4]), most=2)) == 2


class Person:
    """As a data set might hold them, one object for each record."""


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([None, "ann", None], "user id None"),
        ([float("nan"), 1.0, float("nan")], "user id nan"),
        (torch.tensor([1.0, float("nan")]), "user id nan"),
        ([Person(), Person()], "Person objects are equal to nothing but themselves"),
        ([7, "7"], r"of types \['int', 'str'\]"),
    ],
)
def test_ids_that_do_not_tell_users_apart_are_refused(ids, said):
    with pytest.raises(PrivacyError, match=said):
        Users(ids, most=2)
