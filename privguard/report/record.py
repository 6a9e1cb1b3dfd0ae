# SPDX-License-Identifier: Apache-2.0
"""The report as a record, and the records it is made of: plain numbers and text, written to JSON and read back."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast, final

from privguard.errors import TamperedError
from privguard.records import Claim, Finding, Manifest, Outcome, Record, Relation, Sensitivity, Unit, Verdict
from privguard.report.supports import Support

FORMAT = "privguard epsilon report v1"
R = TypeVar("R")


@final
@dataclass(frozen=True, kw_only=True)
class Figure(Record):
    """ε of the same history under another relation or at another δ; all of them hold at once."""

    relation: Relation
    delta: float
    epsilon: float


@final
@dataclass(frozen=True, kw_only=True)
class Group(Record):
    """ε for a person who gave ``records`` records, at the claim's δ, and the highest chance to be right about them."""

    records: int
    delta: float
    epsilon: float
    accuracy: float


@final
@dataclass(frozen=True, kw_only=True)
class Checkpoint(Record):
    """A sealed file or folder of the run, or one in clear.

    ``form`` is ``file``, ``folder`` or ``in clear``; ``size`` is in bytes. ``content`` is the SHA-256 of all but the
    list of recipients, so that it stays when the file is re-wrapped; for a folder it is over the digests of its files.
    ``preamble`` is what the access journal calls it.
    ``resume`` and ``audit`` are who can open it, as its head said when the report was made.
    """

    name: str
    form: str
    size: int
    content: str
    preamble: str = ""
    rewraps: int = 0
    resume: tuple[str, ...] = ()
    audit: tuple[str, ...] = ()


@final
@dataclass(frozen=True, kw_only=True)
class Act(Record):
    """What somebody did to a checkpoint of this run, as the access journal has it."""

    time: str
    who: str
    action: str
    role: str
    checkpoint: str
    result: str


@final
@dataclass(frozen=True, kw_only=True)
class Access(Record):
    """The access journal: how long it was, its head, who signed its lines, and the acts on this run's checkpoints."""

    entries: int
    head: str
    signers: tuple[str, ...]
    acts: tuple[Act, ...]


@final
@dataclass(frozen=True, kw_only=True)
class MarkClaim(Record):
    """A signed bundle of evidence for a mark in a model, and the verdict on it where the reader's trust was given.

    ``log10_p`` is of all committed marks together; *proven* means that it, times ``multiplicity``, is at most
    ``log10_level``. ``basis`` lists what the verdict rests on.
    """

    name: str
    suspect: str
    outcome: str = "not judged"
    reason: str = "nobody said whom to believe; give a trust file when the report is made"
    owner: str = ""
    verifier: str = ""
    committed: str = ""
    log10_p: float | None = None
    multiplicity: float | None = None
    log10_level: float | None = None
    basis: tuple[str, ...] = ()


@final
@dataclass(frozen=True, kw_only=True)
class Attack(Record):
    """One membership attack: its area under the ROC curve with a 95 % interval, and its adjusted p-value.

    The p-value pays for everything that the audit tested.
    """

    attack: str
    auc: float
    low: float
    high: float
    p_adjusted: float


@final
@dataclass(frozen=True, kw_only=True)
class Membership(Record):
    """A membership audit: what it says of the leak, and the attacks on so many members and others.

    ``blind_flagged`` means that members and others differ even without the model, so that an attack's success may be
    the data's and not the model's.
    """

    name: str
    leak: str
    members: int
    non_members: int
    blind_flagged: bool
    attacks: tuple[Attack, ...]


@final
@dataclass(frozen=True, kw_only=True)
class Report(Record):
    """What a privacy officer signs.

    ``claim`` is None for a run without a guarantee: with an insecure seed, or void; ``summary`` says which.
    ``data_name`` is whose data it was, in the words of who made the report. ``profile`` holds (ε, δ) pairs that all
    hold, ``trade_off`` (false-positive rate, highest true-positive rate) pairs that follow from them, ``curve``
    (steps, ε) pairs that never fall. ``reserved`` counts all events that are priced; ``settled`` says whether the run
    stopped cleanly, so that all of them took effect, or crashed, so that some may not have. ``other_evidence`` names
    the files in ``evidence/`` that none of the
    fields before it holds. ``access`` is None where no journal was at hand.
    """

    format: str = FORMAT
    manifest: Manifest
    data_name: str
    claim: Claim | None
    contradictions: tuple[str, ...]
    summary: tuple[str, ...]
    figures: tuple[Figure, ...]
    groups: tuple[Group, ...]
    curve: tuple[tuple[int, float], ...]
    profile: tuple[tuple[float, float], ...]
    trade_off: tuple[tuple[float, float], ...]
    reserved: int
    settled: bool
    ledger_head: str
    ledger_lines: int
    findings: tuple[Finding, ...]
    memberships: tuple[Membership, ...]
    verdicts: tuple[Verdict, ...]
    claims: tuple[MarkClaim, ...]
    other_evidence: tuple[str, ...]
    checkpoints: tuple[Checkpoint, ...]
    access: Access | None
    not_covered: tuple[str, ...]
    assumptions: tuple[str, ...]
    supports: tuple[Support, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Report":
        """The report that ``Record.to_json`` wrote.

        Args:
            value: JSON values, as they were read.

        Raises:
            TamperedError: a field is missing, unknown or of another kind.
        """
        try:
            return _report(value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise TamperedError(f"report: not in the form of {FORMAT!r} ({error})") from None


def finding(value: Mapping[str, Any]) -> Finding:
    """A finding from its JSON; what is none raises ``KeyError``, ``TypeError`` or ``ValueError``.

    Args:
        value: JSON values, as they were read.
    """
    numbers = {name: _real(value[name]) for name in ("epsilon_low", "delta", "confidence", "cap")}
    if any(number != number for number in numbers.values()):  # noqa: PLR0124 — NaN; it would compare with no claim
        raise ValueError("a figure is not a number")
    claimed = None if value["claimed"] is None else _real(value["claimed"])
    return _build(Finding, value, **numbers, claimed=claimed, outcome=Outcome(value["outcome"]))


def sensitivity(value: Mapping[str, Any]) -> Sensitivity:
    """A measured sensitivity from its JSON; raises as ``finding`` does.

    Args:
        value: JSON values, as they were read.
    """
    return _build(Sensitivity, value, moved=_real(value["moved"]))


def membership(name: str, value: Mapping[str, Any]) -> Membership:
    """A membership audit from the JSON that it left; raises as ``finding`` does.

    Args:
        name: the file that it was in.
        value: JSON values, as they were read.
    """
    return Membership(
        name=name,
        leak=str(value["leak"]),
        members=int(value["members"]),
        non_members=int(value["non_members"]),
        blind_flagged=bool(value["blind"]["flagged"]),
        attacks=tuple(
            Attack(
                attack=str(each["attack"]),
                **{part: _real(each["auc"][of]) for part, of in (("auc", "value"), ("low", "low"), ("high", "high"))},
                p_adjusted=_real(each["p_adjusted"]),
            )
            for each in value["attacks"]
        ),
    )


def verdict(value: Mapping[str, Any]) -> Verdict:
    """A verdict from its JSON; what is none raises ``KeyError``, ``TypeError`` or ``ValueError``.

    Args:
        value: JSON values, as they were read.
    """
    numbers = {name: _real(value[name]) for name in ("log10_p", "matches", "multiplicity")}
    return _build(Verdict, value, **numbers)


def _claim(value: Mapping[str, Any]) -> Claim:
    numbers = {name: _real(value[name]) for name in ("epsilon", "delta", "interval")}
    either = {name: None if value[name] is None else _real(value[name]) for name in ("replace_one", "cross_check")}
    relation, unit = Relation(value["relation"]), Unit(value["unit"])
    return _build(Claim, value, **numbers, **either, relation=relation, unit=unit)


def _report(value: Mapping[str, Any]) -> Report:
    if value["format"] != FORMAT:
        raise ValueError(f"format={value['format']!r}: read it with the version that wrote it")
    access = value["access"]
    return _build(
        Report,
        value,
        manifest=Manifest.from_json(value["manifest"]),
        claim=None if value["claim"] is None else _claim(value["claim"]),
        figures=tuple(
            _build(Figure, item, relation=Relation(item["relation"]), epsilon=_real(item["epsilon"]))
            for item in value["figures"]
        ),
        groups=tuple(
            _build(Group, item, **{name: _real(item[name]) for name in ("delta", "epsilon", "accuracy")})
            for item in value["groups"]
        ),
        findings=tuple(map(finding, value["findings"])),
        verdicts=tuple(map(verdict, value["verdicts"])),
        memberships=tuple(
            _build(Membership, item, attacks=tuple(_build(Attack, each) for each in item["attacks"]))
            for item in value["memberships"]
        ),
        claims=tuple(_build(MarkClaim, item) for item in value["claims"]),
        checkpoints=tuple(_build(Checkpoint, item) for item in value["checkpoints"]),
        access=None
        if access is None
        else _build(Access, access, acts=tuple(_build(Act, item) for item in access["acts"])),
        supports=tuple(_build(Support, item) for item in value["supports"]),
        **{name: tuple(map(tuple, value[name])) for name in ("curve", "profile", "trade_off")},
    )


def _build(kind: type[R], value: Mapping[str, Any], **parsed: Any) -> R:
    """``kind`` with exactly the fields of ``value``; lists become tuples, ``parsed`` takes precedence."""
    names = {each.name for each in fields(cast("Any", kind))}
    given = {name: item for name, item in value.items() if name != "record"}
    if set(given) != names:
        raise ValueError(f"{kind.__name__}: found {sorted(set(given) ^ names)} missing or unknown")
    plain = {name: tuple(item) if isinstance(item, list) else item for name, item in given.items()}
    return kind(**{**plain, **parsed})


def _real(value: Any) -> float:
    """A number, or the text by which JSON says infinity."""
    if isinstance(value, bool):
        raise TypeError(f"{value!r}: expected a number")
    return float(value)
