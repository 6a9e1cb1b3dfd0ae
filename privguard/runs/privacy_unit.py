# SPDX-License-Identifier: Apache-2.0
"""Whose contribution is protected: an example, or all of a user's examples together."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

from privguard import _check
from privguard.errors import PrivacyError
from privguard.records import Unit as Kind
from privguard.training.clip import Clipper
from privguard.training.plan import Plan
from privguard.training.sampling.identity import require_once
from privguard.training.sampling.users import EqualShares, Users


@final
@dataclass(frozen=True)
class ByUser:
    """A user is the unit of privacy: whose each record is, and how much of a user enters one step.

    Attributes:
        ids: the column of the data set that says whose a record is, or one value for each record.
        count: the *public* number of users; needed where a budget is to become a plan.
        most: the most records of one user that enter a step.
        clip_each_example: clip each record to its share of the norm, in place of each user's mean to all of it.
    """

    ids: str | Iterable[Hashable]
    count: int | None = None
    most: int = 8
    clip_each_example: bool = False

    def __post_init__(self) -> None:
        _check.count("most", self.most)
        if self.count is not None:
            _check.count("count", self.count)


@final
class Unit:
    """The unit of privacy of a run: an example, or a user, and then how to tell whose each record is.

    ``users`` is None until ``read`` has grouped the data, and stays None where examples are the unit.
    """

    def __init__(self, by_user: ByUser | None) -> None:
        self._ids = None if by_user is None else by_user.ids
        self._most = 1 if by_user is None else by_user.most
        self._apart = by_user is not None and by_user.clip_each_example
        self.count = None if by_user is None else by_user.count
        self.users: Users | None = None

    @property
    def kind(self) -> Kind:
        """Example or user, as manifest, ledger and report name it."""
        return Kind.EXAMPLE if self._ids is None else Kind.USER

    def agrees(self, plan: Plan) -> None:
        """Raise ValueError where the plan protects another unit."""
        _check.require(
            plan.unit == self.kind,
            "plan.unit",
            plan.unit.value,
            wanted=f"{self.kind.value}, as users={'None' if self._ids is None else 'given'} says",
            remedy="pass users=ByUser(...) with a plan for users, and omit it with a plan for examples",
        )

    def read(self, dataset: Any) -> None:
        """Group the records of ``dataset`` by user, where users are the unit."""
        if self._ids is None:
            return
        ids = _column(dataset, self._ids) if isinstance(self._ids, str) else list(self._ids)
        _check.require(
            len(ids) == len(dataset), "users.ids", f"{len(ids)} values", wanted="one for each record of the data set"
        )
        require_once(dataset, owners=ids)
        self.users = Users(ids, most=self._most, apart=self._apart)

    def clipper(self, build: Callable[[float], Clipper], max_grad_norm: float) -> Clipper:
        """The clipper that ``build`` makes for a bound, so that one unit contributes at most ``max_grad_norm``.

        Raises:
            PrivacyError: each example is to be clipped, and the model needs one backward pass for each.
        """
        if not self._apart:
            return build(max_grad_norm)
        each = build(max_grad_norm / self._most)
        if each.rows is not None:
            each.close()
            raise PrivacyError(
                "clip_each_example: the examples of a user go forward together, and this model needs one backward pass "
                "for each; omit it, so that each user's mean is clipped"
            )
        return EqualShares(each, most=self._most)


def _column(dataset: Any, name: str) -> Sequence[Hashable]:
    names = getattr(dataset, "column_names", None)
    if names is not None:
        _check.require(name in names, "users.ids", name, wanted=f"one of the columns {list(names)}")
        return list(dataset[name])
    return [dataset[i][name] for i in range(len(dataset))]
