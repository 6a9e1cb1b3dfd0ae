# SPDX-License-Identifier: Apache-2.0
"""Parallel composition: what one person can be in, where officers declared that data sets share no person.

A person who is in one part of a partition is in none of the others, so what was spent on the parts does not add up for
anybody: the worst part counts (McSherry 2009). That holds for records added or removed. A record that is *replaced* may
leave one part and enter another, so no limit by replacement stands in a family with a partition.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from privguard.accounting.budget.rules import Account

MOST = 256
"""Combinations of parts that a book prices, at most."""


def memberships(account: "Account", data_sets: Iterable[str], *, within: str = "") -> list[frozenset[str]]:
    """The sets of data sets that one person may be in, as far as they matter: none is part of another.

    Args:
        account: the book.
        data_sets: those that anything was spent on; the others do not matter.
        within: a data set that the person is in, if only those people count.

    Returns:
        One set for each combination of parts; a single one where nothing was declared disjoint.
    """
    asked = set(data_sets) | ({within} if within else set())
    roots = sorted({account.ancestors(one)[-1] for one in asked})
    people = [frozenset[str]()]
    for root in roots:
        people = _maximal([some | more for some in people for more in _below(account, root, asked)])
    return [person for person in people if not within or within in person] or [frozenset()]


def count(account: "Account", root: str, partitions: Mapping[str, Sequence[str]]) -> int:
    """How many combinations of parts there would be in a family with these partitions, by parent.

    Args:
        account: the book's state.
        root: digest of the family's root, in hexadecimal.
        partitions: parts that share no person, by parent.
    """
    parts = partitions.get(root, ())
    rest = [count(account, child, partitions) for child in account.children(root) if child not in parts]
    return math.prod(rest) * (sum(count(account, part, partitions) for part in parts) if parts else 1)


def _below(account: "Account", data_set: str, asked: set[str]) -> list[frozenset[str]]:
    parts = account.partitions.get(data_set, ())
    people = [frozenset({data_set} & asked)]
    for child in account.children(data_set):
        if child not in parts:
            people = [some | more for some in people for more in _below(account, child, asked)]
    if parts:
        people = [some | more for some in people for part in parts for more in _below(account, part, asked)]
    return _maximal(people)


def _maximal(people: list[frozenset[str]]) -> list[frozenset[str]]:
    """Each once, without those that lie in another: they cost no more."""
    distinct = sorted(set(people), key=lambda person: (-len(person), sorted(person)))
    return [person for i, person in enumerate(distinct) if not any(person < other for other in distinct[:i])]
