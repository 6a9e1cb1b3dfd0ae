# SPDX-License-Identifier: Apache-2.0
"""Frozen values that cross borders between the parts, and between privguard and its readers.

A record holds plain numbers and text, so it can be hashed (``privguard._canon``), printed, signed and read without
torch. What is a measurement is returned as a record and has no truth value: compare its number with a level that you
chose beforehand.
"""

import math
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, NoReturn, final

from privguard import _canon, _check


class Relation(StrEnum):
    """Which two data sets count as neighbours: one unit more or less, or one unit exchanged for another."""

    ADD_OR_REMOVE_ONE = "add-or-remove-one"
    REPLACE_ONE = "replace-one"


class Unit(StrEnum):
    """Whose whole contribution one neighbouring step adds or removes."""

    EXAMPLE = "example"
    USER = "user"


class Outcome(StrEnum):
    """How an audit ends; it never confirms a claim.

    *Refuted*: the claim does not hold, at the audit's confidence. *Consistent*: the audit could have refuted it, as its
    positive control shows, and did not. *Uninformative*: it could not have refuted it, so it says nothing.
    """

    REFUTED = "refuted"
    CONSISTENT = "consistent"
    UNINFORMATIVE = "uninformative"


class Record:
    """Base of the records below: JSON and digest."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values, with its kind under ``"record"``."""
        return {"record": type(self).__name__, **_canon.to_json(self)}

    def digest(self) -> str:
        """SHA-256 of the record's canonical JSON."""
        return _canon.digest(self.to_json())


class Measurement(Record):
    """Base of the records that measure something: compare the number, there is no yes or no to ask for."""

    __slots__ = ()

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} has no truth value; compare its number with a level that you chose beforehand"
        )


@final
@dataclass(frozen=True, kw_only=True)
class Claim(Measurement):
    """ε from above: what the recorded events cost at most.

    ``epsilon`` is an upper bound at ``delta`` under ``relation`` for one ``unit``; ``replace_one`` is the same
    history's ε when one record is replaced instead of added or removed; ``cross_check`` is the RDP figure, which may
    exceed but never undercut the truth. ``interval`` is the grid of the privacy-loss distribution. ``events`` counts
    the priced events, ``unchecked`` names every assumption that the figure rests on.
    """

    epsilon: float
    delta: float
    relation: Relation = Relation.ADD_OR_REMOVE_ONE
    unit: Unit = Unit.EXAMPLE
    method: str = "pld"
    accountant: str = ""
    interval: float = 0.0
    events: int = 0
    replace_one: float | None = None
    cross_check: float | None = None
    unchecked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check.require(self.epsilon >= 0, "epsilon", self.epsilon, wanted="0 or above, and never NaN")
        _check.probability("delta", self.delta, zero=True, one=True)

    def __str__(self) -> str:
        relation = self.relation.value.replace("-", " ").replace("add or remove", "add-or-remove")
        return f"ε={_above(self.epsilon)} at δ={self.delta:g} ({self.method.upper()}, {relation} {self.unit.value})"


@final
@dataclass(frozen=True, kw_only=True)
class Finding(Measurement):
    """ε from below: what an attack showed, at a confidence fixed before looking.

    ``epsilon_low`` is a lower bound at ``delta`` that holds with probability ``confidence``; ``cap`` is the largest
    value this design could ever have shown; ``outcome`` compares it with the claim. ``counts`` and ``settings`` hold
    what the bound was computed from.
    """

    epsilon_low: float
    delta: float
    confidence: float
    method: str
    outcome: Outcome
    cap: float
    claimed: float | None = None
    counts: dict[str, int] = field(default_factory=dict[str, int])
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()


@final
@dataclass(frozen=True, kw_only=True)
class Sensitivity(Measurement):
    """By how much one record moved a clipped sum, in clipping norms, at most over so many pairs of batches.

    Batches had from 1 to ``largest`` ``records`` (synthetic or public); the worst pair was one of ``worst_size``
    records, of which number ``worst_record`` was left out. A measurement, and no proof.
    """

    moved: float
    pairs: int
    largest: int
    worst_size: int
    worst_record: int
    records: str
    model: str
    clipping: str
    max_grad_norm: float

    def __str__(self) -> str:
        return (
            f"{self.model}: the clipped sum moved by at most {math.ceil(self.moved * 1e4 - 1e-3) / 1e4:.4f} C when one "
            f"record was left out, over {self.pairs:,} pairs of batches of 1 to {self.largest} {self.records} records; "
            f"worst at {self.worst_size} records without number {self.worst_record} (C = {self.max_grad_norm:.4g}, "
            f"clipped by {self.clipping})"
        )


@final
@dataclass(frozen=True, kw_only=True)
class Verdict(Measurement):
    """What a mark says: an exact probability under a null model that is written out in words.

    ``log10_p`` is the base-10 logarithm of the p-value of one test (``bound`` says whether it is exact or a proven
    upper bound), ``multiplicity`` the number of tests it has to pay for, ``log10_e`` an e-value for optional stopping.
    ``matches`` of ``trials`` is the raw count where the statistic is one.
    """

    scheme: str
    null_model: str
    log10_p: float
    trials: int
    matches: float
    multiplicity: float = 1.0
    bound: str = "exact"
    log10_e: float | None = None
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()

    @property
    def p_value(self) -> float:
        """The p-value of one test, 0 where it underflows a double; ``log10_p`` keeps it."""
        return 10.0**self.log10_p

    @property
    def log10_p_corrected(self) -> float:
        """``log10_p`` after Bonferroni over ``multiplicity`` tests, at most 0."""
        return min(0.0, self.log10_p + math.log10(self.multiplicity))


@final
@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """What a run says about itself in public, before its first step: ``run.json``.

    ``plan`` holds the plan's facts, ``model`` its class and sizes, ``data`` what is public about the data (a salted
    commitment, never a plain digest: that would tell a record's presence to whoever knows all others), ``recipients``
    who can open the checkpoints, ``noise`` and ``precision`` how the arithmetic was done. ``insecure`` means that a
    seed was given, so the run has no claim. ``mechanism`` holds the numbers of the sum and its noise, ``outlook``
    whether the run was expected to learn. ``unchecked`` names what its claim rests on beyond what every run's does.
    """

    run: str
    created: str
    plan: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    recipients: tuple[str, ...]
    clipping: str
    probe: str
    noise: str
    precision: str
    software: dict[str, str]
    mechanism: dict[str, Any]
    outlook: dict[str, Any]
    insecure: bool = False
    unchecked: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Manifest":
        """The manifest that ``Record.to_json`` wrote.

        Args:
            value: JSON values, as they were read.

        Raises:
            ValueError: a field is missing or unknown.
        """
        names = {entry.name for entry in fields(cls)}
        _check.require(
            set(value) - {"record"} == names, "manifest", sorted(value), wanted=f"the fields {sorted(names)}"
        )
        given: dict[str, Any] = {name: value[name] for name in names}
        given["recipients"], given["unchecked"] = tuple(given["recipients"]), tuple(given["unchecked"])
        return cls(**given)


@final
@dataclass(frozen=True, kw_only=True)
class Digest(Record):
    """The SHA-256 of something named, in hexadecimal."""

    name: str
    sha256: str
    size: int | None = None


def _above(value: float) -> str:
    """Three decimals, rounded up: a printed ε is never below the computed one."""
    return f"{math.ceil(value * 1000) / 1000:.3f}" if math.isfinite(value) else "∞"
