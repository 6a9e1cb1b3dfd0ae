# SPDX-License-Identifier: Apache-2.0
"""A signed report against the run folder it speaks of: whole, or the name of everything that is not.

``verify`` is the one to call. It holds the signature first, then every file by its bytes, then the ledger's place
in its own history, and last it prices the ledger again: a signer who wrote less than the ledger costs is found too.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import final

from privguard.accounting.ledger import Ledger
from privguard.attest import journal as journals
from privguard.attest.statement import Identity, Statement
from privguard.errors import LedgerError, PrivguardError, SealError, TamperedError, UnrecognisedError
from privguard.records import Claim, Record
from privguard.report import findings, holdings
from privguard.report.assemble import price
from privguard.report.record import Report
from privguard.report.signed import kept, sign
from privguard.runs.folder import LEDGER, MANIFEST

_AGAIN = 1e-3  # of ε: what another version of the accountant may differ by (privguard.accounting.accountant._CONVERGED)


@final
@dataclass(frozen=True)
class Change(Record):
    """One thing that is not as it was signed: its name in the run folder, and what is wrong with it."""

    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


@final
@dataclass(frozen=True, kw_only=True)
class Verified(Record):
    """A report that holds. ``named`` says whether the reader named the signer; ``notes`` what is worth knowing."""

    run: str
    signer: str
    named: bool
    files: int
    ledger_head: str
    ledger_lines: int
    notes: tuple[str, ...]


def verify(
    path: str | os.PathLike[str],
    *,
    run: str | os.PathLike[str] | None = None,
    signers: Sequence[Identity] = (),
    journal: str | os.PathLike[str] | None = None,
) -> Verified:
    """Check the signed report ``path`` (a run folder stands for its own) against the run folder ``run``.

    ``run`` is by default the folder that the report lies in. ``signers`` are who may have signed; without one, any
    signature will do, which shows that all belongs together and not who says so. ``journal`` is the access journal.

    Args:
        path: a signed report, or the run folder it lies in.
        run: the run folder; None for the report's own.
        signers: who may have signed; empty for anybody.
        journal: the access journal; None for none.

    Raises:
        TamperedError: anything is not as it was signed; the message names each such thing and says what is wrong.
        FileNotFoundError: there is no signed report.
    """
    path = _envelope(Path(path))
    try:
        said, report, signer = sign.check(sign.read(path), by=signers)
    except UnrecognisedError as error:
        raise UnrecognisedError(f"{path.name}: {error}") from None
    except TamperedError as error:
        raise TamperedError(f"{path.name}: {error}") from None
    folder = kept.run_of(path.parent) if run is None else Path(run)
    changed, notes = changes(said, report, folder, pages=path.parent)
    changed += _journal(report, journal)
    if not changed:
        changed += _priced_again(report, folder)
    if changed:
        raise TamperedError("\n".join(map(str, changed)))
    if not signers:
        notes.append("nobody was named as signer: all belongs together, and whoever holds this key says so")
    if report.access is not None and journal is None:
        notes.append("the access journal was not checked; name it to check that nothing was cut from it")
    if report.access is None and journal is not None:
        notes.append("the report was made without an access journal, so there is nothing to hold this one against")
    return Verified(
        run=report.manifest.run,
        signer=str(signer),
        named=bool(signers),
        files=len(said.subjects),
        ledger_head=report.ledger_head,
        ledger_lines=report.ledger_lines,
        notes=tuple(notes),
    )


def changes(said: Statement, report: Report, folder: Path, *, pages: Path) -> tuple[list[Change], list[str]]:
    """What in the run folder is not as the statement has it, and notes on what is and has been re-wrapped since.

    Pages are looked for in ``pages`` and, unless that is where a signed report was set aside, in the run folder; each
    one that is there has to be the signed one.

    Args:
        said: the signed statement.
        report: the report in it.
        folder: the run folder.
        pages: where the report's pages lie.
    """
    wanted = {subject.name: subject.sha256 for subject in said.subjects}
    changed, notes = list(_unfit(said, report)), list[str]()
    aside = kept.run_of(pages) != pages  # a newer report's pages lie in the run folder
    for name, digest in wanted.items():
        if name in sign.PAGES:
            changed += _page(name, digest, {pages / name} if aside else {pages / name, folder / name})
        elif not (folder / name).is_file():
            changed.append(Change(name, "is missing"))
        elif holdings.sha256(folder / name) != digest:
            what, note = _why(folder, name, report)
            changed += [Change(name, what)] if what else []
            notes += [note] if note else []
    added = sorted(set(holdings.covered(folder)) - set(wanted))
    return changed + [Change(name, "is not in the report, so it was added since") for name in added], notes


def _envelope(path: Path) -> Path:
    """Where the signed report lies: given itself, one of its pages, or the run folder."""
    if path.is_dir():
        path /= sign.SIGNED
    elif path.name in sign.PAGES:
        path = path.with_name(sign.SIGNED)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no signed report; make one with `privguard report RUN --sign KEY`")
    return path


def _unfit(said: Statement, report: Report) -> Iterator[Change]:
    """What no honest signer writes: names twice or outside of the folder, and a report about less than a run."""
    names = [subject.name for subject in said.subjects]
    if len(set(names)) < len(names) or any(_outside(name) for name in names):
        yield Change(sign.SIGNED, "names a file twice, or one outside of the run folder")
    needed = {MANIFEST, LEDGER, *sign.PAGES}
    needed |= {each.name for each in report.checkpoints if each.form != "folder"}
    yield from (Change(name, "is not among what was signed") for name in sorted(needed - set(names)))


def _outside(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or not path.parts


def _page(name: str, digest: str, places: set[Path]) -> Iterator[Change]:
    found = sorted(place for place in places if place.is_file())
    if not found:
        yield Change(name, "is missing")
    if any(holdings.sha256(place) != digest for place in found):
        yield Change(name, "is not the page that was signed")


def _why(folder: Path, name: str, report: Report) -> tuple[str, str]:
    """(what is wrong, what is to be noted) of a file whose bytes differ; one of the two is empty."""
    if name == LEDGER:
        return _ledger(folder / name, report), ""
    before = {each.name: each for each in report.checkpoints}.get(holdings.unit_of(folder, name))
    if before is None or before.form == holdings.IN_CLEAR:
        return "was changed", ""
    files = [each for each in holdings.covered(folder) if holdings.unit_of(folder, each) == before.name]
    try:
        now = holdings.checkpoints(folder, files)[0]
    except (TamperedError, SealError):
        return "was changed: its head is damaged", ""
    if now.content != before.content or now.rewraps <= before.rewraps:
        return "was changed", ""
    who = ", ".join((*now.resume, *(f"{each} (may audit)" for each in now.audit)))
    return "", f"{before.name}: re-wrapped since, the content is the same; it says that it is now for {who}"


def _ledger(path: Path, report: Report) -> str:
    """How the ledger at hand differs from the one that was signed."""
    signed = f"{report.ledger_lines} lines with head {report.ledger_head[:16]}…"
    try:
        history = Ledger.read(path)
    except (LedgerError, PrivguardError) as error:
        return f"was changed; signed were {signed} ({error})"
    if history.extends(report.ledger_head, report.ledger_lines):
        more = history.size - report.ledger_lines
        return f"has {more} lines more than were signed: the run went on, or a line is unfinished; make a new report"
    if history.size < report.ledger_lines:
        return f"has {history.size} lines where {signed} were signed: the run was rolled back, or this is another run"
    return f"is not the signed one and does not extend it; signed were {signed}"


def _journal(report: Report, path: str | os.PathLike[str] | None) -> Iterator[Change]:
    if path is None or report.access is None:
        return
    try:
        entries = list(journals.read(path))
        anchor = (report.access.entries, report.access.head)
        journals.verify(path, trusted=findings.signers(entries), anchor=anchor)
    except (ValueError, OSError, TamperedError) as error:
        yield Change(str(path), f"is not the journal that was signed, or was cut ({error})")


def _less(signed: Claim, priced: Claim) -> bool:
    """Whether what was signed promises more than the ledger allows."""
    same = (signed.delta, signed.relation, signed.unit) == (priced.delta, priced.relation, priced.unit)
    return not same or priced.epsilon > signed.epsilon * (1 + _AGAIN)


def _priced_again(report: Report, folder: Path) -> Iterator[Change]:
    """Where the signed report says less than its own ledger and evidence do."""
    again = price(folder)
    if again.manifest != report.manifest:
        yield Change(MANIFEST, "is not the manifest in the signed report")
    if (again.history.head, again.history.size) != (report.ledger_head, report.ledger_lines):
        yield Change(LEDGER, "is not the ledger that the signed report names")
    if (again.claim is None) != (report.claim is None):
        yield Change(sign.SIGNED, "gives a claim to a run that has none, or none to one that has")
    elif again.claim is not None and report.claim is not None and _less(report.claim, again.claim):
        yield Change(sign.SIGNED, f"signs {report.claim}; this ledger costs {again.claim}")
    if len(again.contradictions) > len(report.contradictions):
        yield Change(sign.SIGNED, "leaves out an audit that contradicts the claim")
