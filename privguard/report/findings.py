# SPDX-License-Identifier: Apache-2.0
"""What others left in a run's ``evidence`` folder and in the access journal, read as records."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from privguard import _canon
from privguard.accounting.accountant import epsilon
from privguard.accounting.events import Events
from privguard.attest import journal
from privguard.attest.statement import PREDICATES, Envelope, Identity, Statement
from privguard.errors import TamperedError
from privguard.records import Claim, Finding, Outcome, Record, Sensitivity, Verdict
from privguard.report import record
from privguard.report.guarantee import downward, upward
from privguard.report.record import Access, Act, Checkpoint, MarkClaim, Membership

Judge = Callable[[Envelope], Record]
"""Decides about mark evidence, as ``privguard.watermark.claims.evidence.verify`` does with a reader's trust."""

_MARK_EVIDENCE = PREDICATES + "mark-evidence/v1"
_JUDGED = ("outcome", "reason", "owner", "verifier", "committed", "log10_p", "multiplicity", "log10_level", "basis")


@final
@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that was found, in the order of the files' names."""

    findings: list[Finding] = field(default_factory=list[Finding])
    memberships: list[Membership] = field(default_factory=list[Membership])
    verdicts: list[Verdict] = field(default_factory=list[Verdict])
    claims: list[MarkClaim] = field(default_factory=list[MarkClaim])
    other: list[str] = field(default_factory=list[str])
    sensitivities: list[Sensitivity] = field(default_factory=list[Sensitivity])


def read(folder: Path, names: Sequence[str], *, judge: Judge | None = None) -> Evidence:
    """Sort the files of these names into findings, membership audits, verdicts, bundles for marks, and others.

    Raises:
        TamperedError: a file says that it is one of these and is not; the message names it.
    """
    found = Evidence()
    for name in names:
        value = _json(folder / name)
        try:
            if value is None:
                found.other.append(name)
            elif value.get("record") == "Finding":
                found.findings.append(record.finding(value))
            elif value.get("record") == "Sensitivity":
                found.sensitivities.append(record.sensitivity(value))
            elif value.get("record") == "Membership":
                found.memberships.append(record.membership(name, value))
            elif value.get("record") == "Verdict":
                found.verdicts.append(_whole(record.verdict(value)))
            elif "payloadType" in value and (claim := _mark_claim(name, value, judge)) is not None:
                found.claims.append(claim)
            else:
                found.other.append(name)
        except (KeyError, TypeError, ValueError, TamperedError) as error:
            raise TamperedError(f"{folder / name}: not what privguard leaves as evidence ({error})") from None
    return found


def contradictions(claim: Claim | None, events: Events, findings: Sequence[Finding]) -> list[str]:
    """A sentence for each finding that is above what the ledger allows at the finding's own δ, or above its own claim.

    A finding about another unit of privacy than the claim's says nothing about it, unless it refuted what it was held
    against.
    """
    return [said for finding in findings if (said := _contradiction(claim, events, finding)) is not None]


def _contradiction(claim: Claim | None, events: Events, finding: Finding) -> str | None:
    shown = (
        f"{finding.method}: an attack showed ε ≥ {downward(finding.epsilon_low)} at δ = {finding.delta:g} with "
        f"confidence {100 * finding.confidence:.1f} %"
    )
    if claim is not None and finding.settings.get("unit", claim.unit) == claim.unit:
        allowed = epsilon(events, delta=finding.delta, relation=claim.relation)
        if finding.epsilon_low > allowed:
            return (
                f"{shown}, above the {upward(allowed)} that the ledger allows there. One of the two is wrong; do not "
                "rely on the claim."
            )
    if finding.outcome is Outcome.REFUTED or (finding.claimed is not None and finding.epsilon_low > finding.claimed):
        held = "the claim" if finding.claimed is None else f"the {upward(finding.claimed)}"
        return f"{shown}, above {held} that it was held against. Find out which is wrong before relying on either."
    return None


def access(path: Path, checkpoints: Sequence[Checkpoint]) -> Access:
    """What a journal says about these checkpoints.

    Its chain and signatures are checked against the signers that it names itself, which shows that its lines belong
    together; whether those signers are to be believed is for who reads their names.

    Raises:
        TamperedError: a line was changed, dropped or reordered.
    """
    entries = list(journal.read(path))
    checked = journal.verify(path, trusted=signers(entries))
    names = {each.preamble: each.name for each in checkpoints if each.preamble}
    acts = tuple(
        Act(
            time=entry.time,
            who=entry.who,
            action=entry.action,
            role=entry.role,
            checkpoint=names[entry.sha256],
            result=entry.result,
        )
        for entry in entries
        if entry.sha256 in names
    )
    return Access(entries=checked.entries, head=checked.head, signers=checked.signers, acts=acts)


def signers(entries: Sequence[journal.Entry]) -> list[Identity]:
    """The identities that signed these lines, each once."""
    return [Identity.from_json(each) for each in dict.fromkeys(entry.by for entry in entries)]


def _whole(verdict: Verdict) -> Verdict:
    """Refuse a finding in a picture that does not say what the log has of it: marks and noise can be carried over."""
    picture = verdict.scheme.startswith("image/")
    if picture and "answer" not in verdict.details:
        raise ValueError(
            "a mark in a picture without what the log says; make it with `mark image attribute --evidence`"
        )
    if picture and "latent" in verdict.scheme and "log_entry" not in verdict.details:
        raise ValueError("noise in a picture without its log entry, which proves nothing; read it against the log")
    return verdict


def _mark_claim(name: str, value: Mapping[str, Any], judge: Judge | None) -> MarkClaim | None:
    envelope = Envelope.from_json(value)
    said = Statement.from_json(json.loads(envelope.payload))
    if said.predicate_type != _MARK_EVIDENCE:
        return None
    suspect = f"{said.subjects[0].name} ({said.subjects[0].sha256[:16]}…)"
    if judge is None:
        return MarkClaim(name=name, suspect=suspect)
    judged = _canon.to_json(judge(envelope))
    given: dict[str, Any] = {each: judged[each] for each in _JUDGED}
    given["basis"] = tuple(given["basis"])
    return MarkClaim(name=name, suspect=suspect, **given)


def _json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where it holds something else, such as a picture."""
    if path.suffix != ".json":
        return None
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise TamperedError(f"{path}: is called JSON and is not") from None
    return value if isinstance(value, dict) else None
