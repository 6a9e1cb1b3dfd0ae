# SPDX-License-Identifier: Apache-2.0
"""The kinds of model mark that a claim can hold, and the door through which another kind enters.

A kind that is asked through the front door has queries, and answers that are right or wrong. What is read from weights
needs more of the protocol (see ``privguard.watermark.claims.evidence``) and is privguard's own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from privguard import _check
from privguard.errors import ProtocolInvalidError
from privguard.records import Verdict
from privguard.watermark.claims.leaf import Leaf

OWN = ("triggers", "fingerprints", "weights", "responses", "recipients")
_ELSEWHERE = ("weights", "responses", "recipients")  # not read from answers to queries


class AnsweredMark(Protocol):
    """A mark that a suspect's answers show: what is asked, and how likely the right answers are without the mark.

    Verifier and owner both compute it from opened leaves, so it must be a function of its arguments alone.
    """

    @property
    def name(self) -> str:
        """The kind, as it stands in the commitment."""
        ...

    @property
    def readings(self) -> int:
        """In how many ways its answers can be read, all of which are paid for: 2 with and without a label map."""
        ...

    def queries(self, leaves: Sequence[Leaf], *, pulse: bytes, settings: Mapping[str, Any]) -> NDArray[Any]:
        """One query for each leaf, (n, *shape), fixed by leaf, pulse and committed settings.

        Args:
            leaves: opened leaves of the mark, n of them.
            pulse: the beacon's 64 random bytes.
            settings: the mark's committed settings.
        """
        ...

    def verdict(
        self, answers: Sequence[int], leaves: Sequence[Leaf], *, pulse: bytes, settings: Mapping[str, Any]
    ) -> Verdict:
        """The exact verdict on one answer for each leaf.

        Null: the suspect was made independently of the secret. ``details["alphabet"]`` is K, over which right answers
        are uniform; what a label map costs is computed from it.

        Args:
            answers: the suspect's answers, one for each leaf.
            leaves: opened leaves of the mark, n of them.
            pulse: the beacon's 64 random bytes.
            settings: the mark's committed settings.
        """
        ...


_Mark = TypeVar("_Mark", bound=AnsweredMark)
ANSWERED: dict[str, AnsweredMark] = {}


def register_mark(kind: _Mark) -> _Mark:
    """Enter a kind of mark, so that commitments may name it and evidence of it is read.

    Guarantee: whoever reads evidence without having entered the kind gets *protocol invalid*, never a verdict. That the
    null holds is for ``privguard.testing.check_answered_mark`` to test.

    Args:
        kind: a value without state.

    Returns:
        The same value.

    Raises:
        ValueError: the name is taken, or it says that it can be read in no way.
    """
    taken = kind.name in ANSWERED or kind.name in _ELSEWHERE
    _check.require(not taken, "name", kind.name, wanted="a name that no kind of mark has yet")
    _check.count("readings", kind.readings)
    ANSWERED[kind.name] = kind
    return kind


def known() -> tuple[str, ...]:
    """The names of all kinds that a commitment may hold here."""
    return tuple(dict.fromkeys((*OWN, *ANSWERED)))


def readings(kind: str) -> int:
    """In how many ways a mark of this kind can be read in a challenge; 0 where it proves nothing there.

    Args:
        kind: the kind, as it stands in the commitment.
    """
    return 1 if kind == "weights" else ANSWERED[kind].readings if kind in ANSWERED else 0


def answered(name: str, kind: str) -> AnsweredMark:
    """The kind of a mark that is asked through the front door.

    Args:
        name: the mark, for the message.
        kind: its kind.

    Raises:
        ProtocolInvalidError: marks of this kind give no proof in a challenge.
    """
    if kind not in ANSWERED:
        raise ProtocolInvalidError(
            f"mark={name!r}: {kind} give no proof in a challenge; read them with their own command"
        )
    return ANSWERED[kind]
