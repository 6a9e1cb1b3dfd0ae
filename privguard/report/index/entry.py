# SPDX-License-Identifier: Apache-2.0
"""One run as a line of the index.

ε comes from the signed report where its signature holds, a signer whom the reader named made it, and its ledger head is
still the ledger's; else the ledger is priced again. A ``report.json`` without a signature is never believed. Evidence
is read anew in either case, so an audit that came after the signature still shows.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from privguard.accounting.claim import claim_of
from privguard.accounting.history import History
from privguard.attest.statement import Identity
from privguard.errors import PrivguardError
from privguard.records import Claim, Manifest, Record
from privguard.report import findings, holdings
from privguard.report.assemble import run_of
from privguard.report.guarantee import downward
from privguard.report.signed import sign
from privguard.runs.folder import EVIDENCE, MANIFEST, SEALED

UNSIGNED, STALE, STRANGER = "not signed", "signed before the run went on", "signed by a key that was not named"


@final
@dataclass(frozen=True, kw_only=True)
class Entry(Record):
    """What the index says of one run.

    Attributes:
        run: the run's name.
        place: its folder, as given; empty for what only the book knows.
        created: when it was started (UTC), or first reserved.
        data_set, team: as the budget book has them; empty without it.
        epsilon, delta, relation, unit: its claim; None where it has none.
        basis: where ε comes from, or why there is none.
        steps: events that are priced.
        audits: what its audits found, the strongest first.
        alarm: what contradicts the claim, or what could not be read; empty where nothing does.
        signature: who signed it, or why that does not count.
        sealed, in_clear: its checkpoints, by whether they are sealed.
    """

    run: str
    place: str = ""
    created: str = ""
    data_set: str = ""
    team: str = ""
    epsilon: float | None = None
    delta: float | None = None
    relation: str = ""
    unit: str = ""
    basis: str = ""
    steps: int = 0
    audits: tuple[str, ...] = ()
    alarm: str = ""
    signature: str = UNSIGNED
    sealed: int = 0
    in_clear: int = 0


def folders(places: Sequence[Path]) -> list[Path]:
    """The run folders at these places, each once: those given, and those anywhere below a given folder.

    Args:
        places: run folders, and folders above such.

    Raises:
        FileNotFoundError: there is no run at one of them.
    """
    runs: list[Path] = []
    for place in places:
        below = [place] if (place / MANIFEST).is_file() else sorted(path.parent for path in place.rglob(MANIFEST))
        if not below:
            raise FileNotFoundError(f"runs={str(place)!r}: no run there; expected run folders, or a folder of them")
        runs += below
    return list(dict.fromkeys(runs))


def read(folder: Path, *, signers: Sequence[Identity] = ()) -> Entry:
    """The line of one run; one that cannot be read says so in ``alarm``, and has no ε.

    Args:
        folder: a run folder.
        signers: who may have signed; empty for anybody.
    """
    try:
        return _entry(folder, signers)
    except (PrivguardError, OSError, ValueError) as error:
        return Entry(run=_name(folder), place=str(folder), basis="not read", alarm=f"could not be read: {error}")


def _entry(folder: Path, signers: Sequence[Identity]) -> Entry:
    manifest, history = run_of(folder)
    claim, basis, signature = _claim(folder, manifest, history, signers)
    files = holdings.covered(folder)
    evidence = findings.read(folder, [name for name in files if name.startswith(EVIDENCE + "/")])
    against = findings.contradictions(claim, history.spent(), evidence.findings)
    ranked = sorted(evidence.findings, key=lambda each: -each.epsilon_low)
    sealed, in_clear = _checkpoints(folder, files)
    return Entry(
        run=manifest.run,
        place=str(folder),
        created=manifest.created,
        epsilon=None if claim is None else claim.epsilon,
        delta=None if claim is None else claim.delta,
        relation="" if claim is None else claim.relation.value,
        unit="" if claim is None else claim.unit.value,
        basis=basis,
        steps=history.position,
        audits=(
            *(f"{each.method}: ε ≥ {downward(each.epsilon_low)}, {each.outcome.value}" for each in ranked),
            *(f"membership: {each.leak}" for each in evidence.memberships),
        ),
        alarm=" ".join(against) or (f"no guarantee: {basis}" if claim is None else ""),
        signature=signature,
        sealed=sealed,
        in_clear=in_clear,
    )


def _claim(
    folder: Path, manifest: Manifest, history: History, signers: Sequence[Identity]
) -> tuple[Claim | None, str, str]:
    """(claim, what it rests on, signature) of a run."""
    reason = "the run is void" if history.void else "an insecure seed" if manifest.insecure else ""
    path = folder / sign.SIGNED
    if not path.is_file():
        return (None, reason, UNSIGNED) if reason else (claim_of(manifest, history), "ledger", UNSIGNED)
    _, report, signer = sign.check(sign.read(path))
    named = any(signer.key_id == each.key_id for each in signers)
    current = (report.ledger_head, report.ledger_lines) == (history.head, history.size)
    believed = named and current and report.manifest == manifest
    signature = f"signed by {signer}" if believed else STALE if not current else f"{STRANGER}: {signer}"
    if reason:
        return None, reason, signature
    return (
        (report.claim, "signed report", signature) if believed else (claim_of(manifest, history), "ledger", signature)
    )


def _checkpoints(folder: Path, files: Sequence[str]) -> tuple[int, int]:
    """How many checkpoints are sealed, and how many in clear; by their names and places, none is opened."""
    units = {
        holdings.unit_of(folder, name) for name in files if name.startswith("checkpoints/") or name.endswith(SEALED)
    }
    sealed = sum(holdings.looks_sealed(folder, unit) for unit in units)
    return sealed, len(units) - sealed


def _name(folder: Path) -> str:
    try:
        return str(json.loads((folder / MANIFEST).read_bytes())["run"])
    except (OSError, ValueError, KeyError, TypeError):
        return folder.name
