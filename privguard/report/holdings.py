# SPDX-License-Identifier: Apache-2.0
"""What lies in a run folder and belongs to its report: manifest, ledger, evidence and sealed checkpoints."""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from privguard import _canon
from privguard.checkpoint.archive import HEAD
from privguard.checkpoint.fingerprint import fingerprint, is_sealed
from privguard.report.record import Checkpoint
from privguard.runs.folder import CHECKPOINTS, EVIDENCE, LEDGER, MANIFEST, SEALED

IN_CLEAR = "in clear"
_PART = re.compile(r"[0-9a-f]{32}\.\w+")  # how a sealed folder names its parts: docs/spec/checkpoint-v1.md, section 5


def covered(folder: Path) -> list[str]:
    """Names, relative to the run folder, of every file that a report of it speaks about, sorted.

    These are the manifest, the ledger, all below ``checkpoints`` and ``evidence``, and sealed files and folders
    wherever they lie. What else is there, such as keys and pages, is not; nor are hidden files, which a crash leaves.
    """
    files = (PurePosixPath(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(str(name) for name in files if _is_covered(folder, name))


def checkpoints(folder: Path, names: Iterable[str]) -> list[Checkpoint]:
    """The checkpoints among the covered files, each read once from beginning to end.

    Raises:
        TamperedError: a sealed file whose head is damaged.
    """
    units: dict[str, list[str]] = {}
    for name in names:
        if name not in {MANIFEST, LEDGER} and not name.startswith(EVIDENCE + "/"):
            units.setdefault(unit_of(folder, name), []).append(name)
    return [_checkpoint(folder, unit, files) for unit, files in units.items()]


def unit_of(folder: Path, name: str) -> str:
    """The checkpoint that a file is, or that it is a part of; the run folder itself is called ``.``."""
    path = PurePosixPath(name)
    return str(path.parent) if (folder / path.parent / HEAD).is_file() and path.suffix != SEALED else name


def looks_sealed(folder: Path, unit: str) -> bool:
    """Whether a checkpoint is a sealed file or folder, by the first bytes of it."""
    head = PurePosixPath(unit, HEAD) if (folder / unit).is_dir() else unit
    return is_sealed(folder / head)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_covered(folder: Path, name: PurePosixPath) -> bool:
    if any(part.startswith(".") for part in name.parts):
        return False
    if name.suffix == SEALED or name.name == HEAD:
        return True
    if len(name.parts) == 1:
        return name.name in {MANIFEST, LEDGER} or _PART.fullmatch(name.name) is not None
    return name.parts[0] in {CHECKPOINTS, EVIDENCE} or (folder / name.parent / HEAD).is_file()


def _checkpoint(folder: Path, unit: str, files: list[str]) -> Checkpoint:
    size = sum((folder / name).stat().st_size for name in files)
    head = str(PurePosixPath(unit, HEAD)) if unit not in files else unit
    if not is_sealed(folder / head):
        return Checkpoint(name=unit, form=IN_CLEAR, size=size, content=sha256(folder / unit))
    found = fingerprint(folder / head)
    content = found.content
    if head != unit:
        content = _canon.digest({name: content if name == head else sha256(folder / name) for name in files})
    return Checkpoint(
        name=unit,
        form=found.form,
        size=size,
        content=content,
        preamble=found.preamble,
        rewraps=found.rewraps,
        resume=found.resume,
        audit=found.audit,
    )
