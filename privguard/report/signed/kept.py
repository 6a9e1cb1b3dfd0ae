# SPDX-License-Identifier: Apache-2.0
"""Signed reports are kept: a newer report never takes the place of a signed one without a trace.

A run goes on, an audit is added, and its report is made again. What an officer signed then moves, pages and signature
together, to ``signed/HEAD`` in the run folder, HEAD being the beginning of the ledger head that the signature names.
There ``privguard report verify RUN/signed/HEAD`` says what has changed in the run since.
"""

from pathlib import Path

from privguard.errors import TamperedError
from privguard.report.record import Report
from privguard.report.signed import sign

FOLDER = "signed"
_SHOWN = 16  # characters of the ledger head


def stands(report: Report, folder: Path) -> bool:
    """Whether the signed report in the run folder says the same as ``report``, so that its signature still holds."""
    try:
        _, signed, _ = sign.check(sign.read(folder / sign.SIGNED))
    except (FileNotFoundError, TamperedError):
        return False
    return signed == report and all((folder / name).is_file() for name in sign.PAGES)


def set_aside(folder: Path) -> Path | None:
    """Move a signed report and its pages out of the way of a newer one.

    Returns:
        Where it is kept now, or None where the run folder holds no signed report.

    Raises:
        OSError: it cannot be moved; the run folder is as it was.
    """
    if not (folder / sign.SIGNED).exists():
        return None
    place = _free(folder / FOLDER, _name(folder / sign.SIGNED))
    place.mkdir(parents=True)
    for name in (*(page for page in sign.PAGES if (folder / page).exists()), sign.SIGNED):  # the signature moves last
        (folder / name).rename(place / name)
    return place


def run_of(report: Path) -> Path:
    """The run folder that a signed report speaks of: the one it lies in, or the one it was kept in."""
    return report.parents[1] if report.parent.name == FOLDER else report


def _name(signed: Path) -> str:
    try:
        _, report, _ = sign.check(sign.read(signed))
    except TamperedError:
        return "unreadable"  # kept all the same: what somebody called a signature is not ours to delete
    return report.ledger_head[:_SHOWN]


def _free(folder: Path, name: str) -> Path:
    """``folder/name``, or with a number behind it where that is taken."""
    place, number = folder / name, 1
    while place.exists():
        number += 1
        place = folder / f"{name}-{number}"
    return place
