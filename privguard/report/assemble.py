# SPDX-License-Identifier: Apache-2.0
"""Run folder → one report: records in, a record out. Nothing here touches a model or a key."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

from privguard.accounting import group
from privguard.accounting.accountant import epsilon_curve, privacy_profile
from privguard.accounting.claim import claim_of
from privguard.accounting.events import Events
from privguard.accounting.history import History
from privguard.accounting.ledger import Ledger
from privguard.errors import TamperedError
from privguard.records import Claim, Manifest, Relation
from privguard.report import findings, guarantee, holdings, supports
from privguard.report.findings import Evidence, Judge
from privguard.report.record import Figure, Group, Report
from privguard.runs.folder import EVIDENCE, LEDGER, MANIFEST


@final
@dataclass(frozen=True, kw_only=True)
class Sources:
    """What a report can use besides the run folder; each may be missing, and the report then says so.

    Attributes:
        data_name: whose data it was, in a few words; nothing checks them.
        journal: the access journal of the machine that sealed and opened the checkpoints.
        judge: gives the verdict on bundles of mark evidence: ``privguard.watermark.claims.evidence.verify`` with the
            trust of whoever makes the report.
    """

    data_name: str = ""
    journal: Path | None = None
    judge: Judge | None = None


@final
@dataclass(frozen=True, kw_only=True)
class Priced:
    """The core of a report: what was spent, and what in the evidence speaks against it."""

    manifest: Manifest
    history: History
    claim: Claim | None
    files: list[str]
    evidence: Evidence
    contradictions: tuple[str, ...]


def price(folder: Path, *, judge: Judge | None = None) -> Priced:
    """Price the ledger of a run folder and hold its evidence against it; raises as ``assemble`` does.

    Args:
        folder: a run folder.
        judge: what gives the verdict on a claim's evidence; None where it is not read.
    """
    manifest, history = run_of(folder)
    claim = None if manifest.insecure or history.void else claim_of(manifest, history)
    files, inside = holdings.covered(folder), EVIDENCE + "/"
    found = findings.read(folder, [name for name in files if name.startswith(inside)], judge=judge)
    return Priced(
        manifest=manifest,
        history=history,
        claim=claim,
        files=files,
        evidence=found,
        contradictions=tuple(findings.contradictions(claim, history.spent(), found.findings)),
    )


def assemble(folder: str | os.PathLike[str], *, sources: Sources | None = None) -> Report:
    """Read a run folder and price its ledger.

    Args:
        folder: a run folder.
        sources: files besides those of the folder; None for none.

    Raises:
        TamperedError: the ledger is not what was written, or belongs to another run than the manifest; evidence, the
            journal or a sealed file is damaged.
        FileNotFoundError: the folder has no manifest.
    """
    folder, sources = Path(folder), sources or Sources()
    priced = price(folder, judge=sources.judge)
    manifest, history, claim, found = priced.manifest, priced.history, priced.claim, priced.evidence
    events = history.spent()
    profile = [] if claim is None else privacy_profile(events, claim=claim)
    measured = [f"Measured by privguard audit model, which proves nothing: {each}." for each in found.sensitivities]
    checkpoints = tuple(holdings.checkpoints(folder, priced.files))
    return Report(
        manifest=manifest,
        data_name=sources.data_name,
        claim=claim,
        contradictions=priced.contradictions,
        summary=_summary(claim, profile, void=history.void),
        figures=_figures(claim),
        groups=() if len(manifest.plan.get("strategy", (1,))) > 1 else _groups(events, claim),
        curve=_curve(events, claim),
        profile=tuple(profile),
        trade_off=tuple(guarantee.trade_off(profile)),
        reserved=history.position,
        settled=history.settled and not history.crashed,
        ledger_head=history.head,
        ledger_lines=history.size,
        findings=tuple(found.findings),
        memberships=tuple(found.memberships),
        verdicts=tuple(found.verdicts),
        claims=tuple(found.claims),
        other_evidence=tuple(found.other),
        checkpoints=checkpoints,
        access=None if sources.journal is None else findings.access(sources.journal, checkpoints),
        not_covered=tuple(guarantee.not_covered(manifest)),
        assumptions=tuple(guarantee.assumptions(manifest, (*history.unchecked, *measured))),
        supports=supports.table(journal=sources.journal is not None),
    )


def run_of(folder: Path) -> tuple[Manifest, History]:
    """The manifest and the ledger of a run folder, checked to belong together; raises as ``assemble`` does.

    Args:
        folder: a run folder.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise TamperedError(f"{path}: not a run's manifest ({error})") from None
    history = Ledger.read(folder / LEDGER)
    if history.facts.get("manifest") != manifest.digest():
        raise TamperedError(f"{path}: the ledger was opened for another manifest; one of the two was changed")
    return manifest, history


_VOID = (
    "while it was training, examples were found to interact, so the steps that were released before rest on no bound, "
    "whatever they cost by the ledger"
)


def _summary(claim: Claim | None, profile: guarantee.Profile, *, void: tuple[str, ...]) -> tuple[str, ...]:
    if void:
        return (f"This run has no claim: {_VOID}.", *void)
    if claim is None:
        return (
            (
                "This run was started with an insecure seed, so anybody may know its noise: it carries no "
                "guarantee at all."
            ),
        )
    if not math.isfinite(claim.epsilon):
        return ("This run added no noise, so its ε is infinite: it carries no guarantee at all.",)
    return (
        guarantee.guarantee(claim),
        guarantee.reach(claim),
        guarantee.odds(claim, profile),
        guarantee.connection(claim, profile),
    )


def _figures(claim: Claim | None) -> tuple[Figure, ...]:
    if claim is None:
        return ()
    own = Figure(relation=claim.relation, delta=claim.delta, epsilon=claim.epsilon)
    if claim.replace_one is None or claim.relation is Relation.REPLACE_ONE:
        return (own,)
    return own, Figure(relation=Relation.REPLACE_ONE, delta=claim.delta, epsilon=claim.replace_one)


def _groups(events: Events, claim: Claim | None) -> tuple[Group, ...]:
    if claim is None or not math.isfinite(claim.epsilon):
        return ()
    return tuple(
        Group(
            records=records,
            delta=claim.delta,
            epsilon=epsilon,
            accuracy=guarantee.best_accuracy([(epsilon, claim.delta)]),
        )
        for records, epsilon in group.epsilons(events, claim=claim)
    )


def _curve(events: Events, claim: Claim | None) -> tuple[tuple[int, float], ...]:
    if claim is None or not math.isfinite(claim.epsilon):
        return ()
    return tuple(epsilon_curve(events, delta=claim.delta, relation=claim.relation))
