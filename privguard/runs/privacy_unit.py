"""Whose contribution is protected: an example, or all of a user's examples together."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, final

from privguard import _check
from privguard.errors import PrivacyError
from privguard.records import Unit as Kind
from privguard.training.clip import Clipper
from privguard.training.plan import Plan
from privguard.training.users import EqualShares, Users


@final
class Unit:
    """The unit of privacy of a run: an example, or a user, and then how to tell whose each record is.

    ``most`` records of a user enter a step at most; ``apart`` says that each of them is clipped by itself. ``users`` is
    None until :meth:`read` has grouped the data, and stays None where examples are the unit.
    """

    def __init__(self, ids: str | Iterable[Hashable] | None, *, most: int, apart: bool) -> None:
        self._ids, self._most, self._apart = ids, most, apart
        self.users: Users | None = None

    @classmethod
    def of(cls, ids: str | Iterable[Hashable] | None, *, most: int, apart: bool) -> "Unit":
        """Users where ``ids`` tells them apart, else examples."""
        _check.require(
            ids is not None or not apart,
            "clip_each_example",
            apart,
            wanted="user_ids with it",
            remedy="without users each example is clipped by itself anyhow",
        )
        return cls(ids, most=_check.count("examples_per_user", most), apart=apart)

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
            wanted=f"{self.kind.value}, as user_ids={'None' if self._ids is None else 'given'} says",
            remedy="pass user_ids with a plan for users, and leave it away with a plan for examples",
        )

    def read(self, dataset: Any) -> None:
        """Group the records of ``dataset`` by user, where users are the unit."""
        if self._ids is None:
            return
        ids = _column(dataset, self._ids) if isinstance(self._ids, str) else list(self._ids)
        _check.require(
            len(ids) == len(dataset), "user_ids", f"{len(ids)} values", wanted="one for each record of the data set"
        )
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
                "for each; leave it away, so that each user's mean is clipped"
            )
        return EqualShares(each, most=self._most)


def _column(dataset: Any, name: str) -> Sequence[Hashable]:
    names = getattr(dataset, "column_names", None)
    if names is not None:
        _check.require(name in names, "user_ids", name, wanted=f"one of the columns {list(names)}")
        return list(dataset[name])
    return [dataset[i][name] for i in range(len(dataset))]
