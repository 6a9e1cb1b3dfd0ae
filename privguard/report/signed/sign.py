# SPDX-License-Identifier: Apache-2.0
"""Report → signed statement: in-toto v1 in a DSSE envelope, about every file that the report speaks of.

The predicate is the report and the signer's public key, so the signature holds ε, the ledger's head *and* its size; the
subjects are the files of the run and the rendered pages, each by the SHA-256 of its bytes. What the signature is worth
and what it is not: ``docs/report.md``, "What a signature says".
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from privguard import _canon
from privguard.accounting.ledger import Ledger
from privguard.attest import statement
from privguard.attest.statement import Envelope, Identity, SigningKey, Statement
from privguard.errors import TamperedError
from privguard.records import Digest
from privguard.report import holdings, render
from privguard.report.record import Report
from privguard.runs.folder import LEDGER, REPORT_JSON, REPORT_MARKDOWN, REPORT_PAGE

PREDICATE_TYPE = statement.PREDICATES + "epsilon-report/v1"
SIGNED = "report.dsse.json"
PAGES = (REPORT_JSON, REPORT_MARKDOWN, REPORT_PAGE)


def sign(report: Report, folder: str | os.PathLike[str], *, by: SigningKey) -> Envelope:
    """Sign a report that was written into the run folder that it was made from; its pages then name the key.

    Args:
        report: the report, as it was written.
        folder: the run folder.
        by: the key that signs.

    Raises:
        TamperedError: a page or the ledger is not the report's; make it again and sign that.
    """
    folder = Path(folder)
    if (folder / REPORT_JSON).read_text(encoding="utf-8") != render.to_json(report):
        raise TamperedError(f"{folder / REPORT_JSON}: is not this report; write it again with render.write")
    history = Ledger.read(folder / LEDGER)
    if (history.head, history.size) != (report.ledger_head, report.ledger_lines):
        raise TamperedError(f"{folder / LEDGER}: has changed since the report was made; make it again")
    render.write(report, folder, signer=str(by.identity))
    names = (*holdings.covered(folder), *PAGES)
    subjects = tuple(Digest(name=name, sha256=holdings.sha256(folder / name)) for name in names)
    said = Statement(subjects=subjects, predicate_type=PREDICATE_TYPE, predicate=_predicate(report, by.identity))
    return statement.sign(said, by=by)


def read(path: Path) -> Envelope:
    """The envelope in a file that is, to the byte, what ``Envelope.write`` writes; nothing in it is verified yet.

    Args:
        path: the signed report.

    Raises:
        TamperedError: it is no envelope, or one in another form: the same signature in other bytes is a changed file.
    """
    envelope = Envelope.read(path)
    if path.read_bytes() != _canon.canonical(envelope.to_json()) + b"\n":
        raise TamperedError(f"{path}: its bytes are not those that were written when it was signed")
    return envelope


def check(envelope: Envelope, *, by: Sequence[Identity] = ()) -> tuple[Statement, Report, Identity]:
    """The statement, its report and who of ``by`` signed it; without ``by``, the key that the statement itself names.

    Args:
        envelope: a signed report.
        by: who may have signed; empty for anybody.

    Raises:
        TamperedError: none of them signed it, or it is not a report.
    """
    if len(envelope.signatures) != 1:
        raise TamperedError(
            f"signatures={len(envelope.signatures)}: expected one; each signer signs a file of their own"
        )
    said, signer = statement.verify_any(envelope, by=by or [_names_itself(envelope)])
    if said.predicate_type != PREDICATE_TYPE:
        raise TamperedError(f"predicateType={said.predicate_type!r}: expected {PREDICATE_TYPE}, a signed ε report")
    return said, Report.from_json(said.predicate["report"]), signer


def _predicate(report: Report, signer: Identity) -> dict[str, Any]:
    return {"report": report.to_json(), "signer": signer.to_json()}


def _names_itself(envelope: Envelope) -> Identity:
    try:
        return Identity.from_json(json.loads(envelope.payload)["predicate"]["signer"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise TamperedError("payload: names no signer, so it is not a signed ε report") from None
