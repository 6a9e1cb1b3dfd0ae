"""Run folder → one report: records in, a record out. Nothing here touches a model or a key."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from privguard.accounting.accountant import epsilon_curve, privacy_profile, spent
from privguard.accounting.events import Events
from privguard.accounting.ledger import Ledger
from privguard.errors import TamperedError
from privguard.records import Claim, Digest, Manifest, Record, Relation, Unit
from privguard.report import statement


@final
@dataclass(frozen=True, kw_only=True)
class Report(Record):
    """What a privacy officer signs.

    ``claim`` is None for a run with an insecure seed, which has no guarantee. ``profile`` holds (ε, δ) pairs that all
    hold, ``curve`` (steps, ε) pairs that never fall. ``reserved`` counts all events that are priced; ``settled`` says
    whether the run stopped cleanly, so that all of them took effect, or crashed, so that some may not have.
    ``findings`` and ``verdicts`` are the audits' and marks' records, as JSON.
    """

    manifest: Manifest
    claim: Claim | None
    summary: tuple[str, ...]
    not_covered: tuple[str, ...]
    assumptions: tuple[str, ...]
    curve: tuple[tuple[int, float], ...]
    profile: tuple[tuple[float, float], ...]
    reserved: int
    settled: bool
    ledger_head: str
    ledger_lines: int
    checkpoints: tuple[Digest, ...]
    findings: tuple[dict[str, Any], ...]
    verdicts: tuple[dict[str, Any], ...]
    contradictions: tuple[str, ...]


def assemble(folder: str | os.PathLike[str]) -> Report:
    """Read a run folder and price its ledger.

    Raises:
        TamperedError: the ledger is not what was written, or belongs to another run than the manifest.
        FileNotFoundError: the folder has no manifest.
    """
    folder = Path(folder)
    manifest = Manifest.from_json(json.loads((folder / "run.json").read_text()))
    history = Ledger.read(folder / "ledger.jsonl")
    if history.facts.get("manifest") != manifest.digest():
        raise TamperedError(
            f"{folder / 'run.json'}: the ledger was opened for another manifest; one of the two was changed"
        )
    events, claim = history.spent(), None
    if not manifest.insecure:
        relation, unit = Relation(manifest.plan["relation"]), Unit(manifest.plan["unit"])
        claim = spent(events, delta=manifest.plan["delta"], relation=relation, unit=unit)
    profile = [] if claim is None else privacy_profile(events, claim=claim)
    findings, verdicts = _evidence(folder / "evidence")
    return Report(
        manifest=manifest,
        claim=claim,
        summary=_summary(claim, profile),
        profile=tuple(profile),
        not_covered=tuple(statement.not_covered(manifest)),
        assumptions=tuple(statement.assumptions(manifest)),
        curve=_curve(events, claim),
        reserved=history.position,
        settled=history.settled,
        ledger_head=history.head,
        ledger_lines=history.size,
        checkpoints=tuple(
            _digest(path, folder) for path in sorted((folder / "checkpoints").glob("*")) if path.is_file()
        ),
        findings=findings,
        verdicts=verdicts,
        contradictions=tuple(_contradictions(claim, findings)),
    )


def _summary(claim: Claim | None, profile: statement.Profile) -> tuple[str, ...]:
    if claim is None:
        return (
            (
                "This run was started with an insecure seed, so anybody may know its noise: it carries no "
                "guarantee at all."
            ),
        )
    if not math.isfinite(claim.epsilon):
        return ("This run added no noise, so its ε is infinite: it carries no guarantee at all.",)
    return statement.guarantee(claim), statement.reach(claim), statement.odds(claim, profile)


def _curve(events: Events, claim: Claim | None) -> tuple[tuple[int, float], ...]:
    if claim is None or not math.isfinite(claim.epsilon):
        return ()
    return tuple(epsilon_curve(events, delta=claim.delta, relation=claim.relation))


def _evidence(folder: Path) -> tuple[tuple[dict[str, Any], ...], tuple[dict[str, Any], ...]]:
    """The findings and verdicts that other commands left in the run folder, in the order of their names."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    kinds = {kind: tuple(r for r in records if r.get("record") == kind) for kind in ("Finding", "Verdict")}
    return kinds["Finding"], kinds["Verdict"]


def _contradictions(claim: Claim | None, findings: tuple[Mapping[str, Any], ...]) -> list[str]:
    if claim is None:
        return []
    return [
        f"{finding['method']}: an attack showed ε ≥ {finding['epsilon_low']:.3f} at δ = "
        f"{finding['delta']:g} with confidence "
        f"{finding['confidence']:.0%}, above the claimed {claim.epsilon:.3f}. One of the two is wrong; do "
        "not rely on the claim."
        for finding in findings
        if finding["delta"] >= claim.delta and finding["epsilon_low"] > claim.epsilon
    ]


def _digest(path: Path, folder: Path) -> Digest:
    with path.open("rb") as file:
        return Digest(
            name=str(path.relative_to(folder)),
            sha256=hashlib.file_digest(file, "sha256").hexdigest(),
            size=path.stat().st_size,
        )
