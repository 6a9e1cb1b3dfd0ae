# SPDX-License-Identifier: Apache-2.0
"""What officers sign: grants on data sets, releases of what a run reserved, and which data sets share no person.

A *data set* is known by the digest of its content and, where it was derived, by its parent. Two data sets with one
declared *population* may hold the same people. A *grant* sets the limit of a data set, and a *release* gives back what
a run reserved and never began. A *partition* says that no person is in two of some data sets. All are signed by as many
officers as the book's quorum asks, and bound to the book and to their place in it, so that an old one cannot come back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, final

from privguard import _canon, _check
from privguard.accounting.calibrate import Budget
from privguard.attest.statement import PREDICATES, Envelope, Identity, SigningKey, Statement, sign, verify
from privguard.errors import TamperedError
from privguard.records import Digest, Record, Relation

GRANT = PREDICATES + "budget-grant/v2"
RELEASE = PREDICATES + "budget-release/v1"
PARTITION = PREDICATES + "budget-partition/v1"


@final
@dataclass(frozen=True, kw_only=True)
class DataSet(Record):
    """A data set by content and lineage; every field is public.

    ``sha256`` is the digest of its content, ``parent`` that of the data set it was made from by ``transformations``.
    ``version`` may be a DVC or lakeFS identifier. ``population`` names whose records it holds: data sets that name the
    same one may share people, and a person's total is composed over all of them.
    """

    sha256: str
    name: str
    source: str = ""
    version: str = ""
    parent: str | None = None
    transformations: tuple[str, ...] = ()
    population: str = ""

    def __post_init__(self) -> None:
        for label, value in (("sha256", self.sha256), ("parent", self.parent or self.sha256)):
            _check.require(_canon.is_digest(value), label, value, wanted="64 lower-case hexadecimal characters")
        _check.require(self.parent != self.sha256, "parent", self.parent, wanted="another data set")


@final
@dataclass(frozen=True, kw_only=True)
class Terms(Record):
    """What a grant asks besides its lifetime limit.

    Attributes:
        until: last day (UTC, ``YYYY-MM-DD``) on which anything may be *reserved*; what was spent stays spent.
        window_days: length of a window that limits the rate of spending; with ``window_epsilon``.
        window_epsilon: ε of what is reserved within any such window, at most. The lifetime limit holds beside it.
        team: the grant is one team's share, beside the limit of all; with such grants, every run names its team.
    """

    until: str | None = None
    window_days: int | None = None
    window_epsilon: float | None = None
    team: str = ""

    def __post_init__(self) -> None:
        if self.until is not None:
            day = _day(self.until)
            _check.require(day == self.until, "until", self.until, wanted="a day, as 2027-12-31")
        both = (self.window_days is None) == (self.window_epsilon is None)
        _check.require(both, "window", (self.window_days, self.window_epsilon), wanted="days and epsilon, or neither")
        if self.window_days is not None and self.window_epsilon is not None:
            _check.count("window_days", self.window_days)
            _check.positive("window_epsilon", self.window_epsilon)


@final
@dataclass(frozen=True, kw_only=True)
class Grant(Record):
    """Officers' word: ``budget`` for the data set ``sha256`` in the book ``book``; a later serial replaces it."""

    book: str
    sha256: str
    serial: int
    budget: Budget
    reason: str
    terms: Terms = field(default_factory=Terms)

    def sign(self, key: SigningKey) -> Envelope:
        """The grant as a signed statement about the data set.

        Args:
            key: an officer's signing key.
        """
        return _signed(GRANT, "data set", self.sha256, self, key)

    @classmethod
    def verify(cls, envelope: Envelope, officers: tuple[Identity, ...], *, quorum: int = 1) -> "Grant":
        """The grant inside, once that many officers are known to have signed it; raises ``TamperedError``.

        Args:
            envelope: the signed statement.
            officers: whose signatures count.
            quorum: how many of them it takes.
        """
        given = _agreed(envelope, officers, quorum, wanted=GRANT)
        limit, terms = given["budget"], given["terms"]
        budget = Budget(epsilon=limit["epsilon"], delta=limit["delta"], relation=Relation(limit["relation"]))
        names = ("until", "window_days", "window_epsilon", "team")
        return cls(
            book=given["book"],
            sha256=given["sha256"],
            serial=given["serial"],
            budget=budget,
            reason=given["reason"],
            terms=Terms(**{name: terms[name] for name in names}),
        )


@final
@dataclass(frozen=True, kw_only=True)
class Release(Record):
    """Officers' word: ``run`` used no more than its first ``used`` events; ``serial`` counts the run's rows before."""

    book: str
    run: str
    serial: int
    used: int
    reason: str

    def sign(self, key: SigningKey) -> Envelope:
        """The release as a signed statement about the run.

        Args:
            key: an officer's signing key.
        """
        return _signed(RELEASE, "run", _canon.digest(self.run), self, key)

    @classmethod
    def verify(cls, envelope: Envelope, officers: tuple[Identity, ...], *, quorum: int = 1) -> "Release":
        """The release inside, once that many officers are known to have signed it; raises ``TamperedError``.

        Args:
            envelope: the signed statement.
            officers: whose signatures count.
            quorum: how many of them it takes.
        """
        given = _agreed(envelope, officers, quorum, wanted=RELEASE)
        return cls(**{name: given[name] for name in ("book", "run", "serial", "used", "reason")})


@final
@dataclass(frozen=True, kw_only=True)
class Partition(Record):
    """Officers' word: no person is in two of ``parts``, which were all made from ``parent``; ``reason`` says why."""

    book: str
    parent: str
    parts: tuple[str, ...]
    reason: str

    def __post_init__(self) -> None:
        _check.require(
            len(set(self.parts)) == len(self.parts) > 1, "parts", self.parts, wanted="two or more, each once"
        )
        _check.require(bool(self.reason), "reason", self.reason, wanted="how it is known that they share no person")

    def sign(self, key: SigningKey) -> Envelope:
        """The partition as a signed statement about the parent.

        Args:
            key: an officer's signing key.
        """
        return _signed(PARTITION, "data set", self.parent, self, key)

    @classmethod
    def verify(cls, envelope: Envelope, officers: tuple[Identity, ...], *, quorum: int = 1) -> "Partition":
        """The partition inside, once that many officers are known to have signed it; raises ``TamperedError``.

        Args:
            envelope: the signed statement.
            officers: whose signatures count.
            quorum: how many of them it takes.
        """
        given = _agreed(envelope, officers, quorum, wanted=PARTITION)
        return cls(book=given["book"], parent=given["parent"], parts=tuple(given["parts"]), reason=given["reason"])


def _signed(kind: str, name: str, sha256: str, record: Record, key: SigningKey) -> Envelope:
    subject = Digest(name=name, sha256=sha256)
    return sign(Statement(subjects=(subject,), predicate_type=kind, predicate=record.to_json()), by=key)


def _agreed(envelope: Envelope, officers: tuple[Identity, ...], quorum: int, *, wanted: str) -> Mapping[str, Any]:
    """What the statement says, if it is of the wanted kind and enough officers signed it."""
    statements: list[Statement] = []
    for officer in officers:
        try:
            statements.append(verify(envelope, by=officer))
        except TamperedError:
            continue
    if len(statements) < quorum:
        raise TamperedError(
            f"envelope: signed by {len(statements)} of this book's {len(officers)} officers; expected {quorum} or more"
        )
    kind = statements[0].predicate_type
    _check.require(kind == wanted, "predicate type", kind, wanted=wanted)
    return statements[0].predicate


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        return ""
