# SPDX-License-Identifier: Apache-2.0
"""The log of marked pictures, and attribution: mark, identifier and looks, each fact apart.

One signed journal line per picture says which identifier it got, under which profile, and roughly what it looks like. A
mark on a picture that does not look like its entry was carried there. How pictures look is a heuristic: it decides
between "found" and "copied", and no probability is quoted for it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from privguard import _canon
from privguard.attest import journal
from privguard.attest.journal import Journal
from privguard.attest.statement import Identity
from privguard.errors import TamperedError
from privguard.records import Record, Verdict
from privguard.watermark.image.blocks import Grid
from privguard.watermark.image.detect import ImageDetections, Reading
from privguard.watermark.image.keys import BLOCK, VERSION, Reals
from privguard.watermark.image.pixels import luma
from privguard.watermark.image.profile import ImageProfile

_FINE_BLOCKS = 4000  # up to here two by two cells of a block are noted, above one
_ALIKE = 0.95  # least correlation of the cells: honest edits measured 0.994 and above, foreign pictures 0.904 and below
_SLOPES = (0.5, 2.0)  # of contrast: a faint copy of the shading is not the picture
_CHARACTERISTIC = 4.0  # grey levels: cells that vary less have no looks to compare


@final
@dataclass(frozen=True)
class Looks:
    """A picture as coarse cells of luma, (R, C), on the grid of its blocks; ``per_block`` cells each way."""

    cells: NDArray[np.uint8]
    per_block: int

    @classmethod
    def of(cls, y: Reals, grid: Grid) -> "Looks":
        """The cells of luma (H, W) under a grid.

        Args:
            y: luma (H, W).
            grid: where the blocks lie.
        """
        per_block = 2 if grid.rows * grid.columns <= _FINE_BLOCKS else 1
        return cls(_cells(y, grid, per_block), per_block)

    def to_text(self) -> str:
        """Rows, columns, cells per block and the cells in hexadecimal."""
        rows, columns = self.cells.shape
        return f"{rows}x{columns}/{self.per_block}:{self.cells.tobytes().hex()}"

    @classmethod
    def from_text(cls, text: str) -> "Looks":
        """The inverse of ``to_text``.

        Args:
            text: what to_text wrote.

        Raises:
            TamperedError: it is none.
        """
        try:
            head, cells = text.split(":")
            shape, per_block = head.split("/")
            rows, columns = map(int, shape.split("x"))
            return cls(np.frombuffer(bytes.fromhex(cells), np.uint8).reshape(rows, columns), int(per_block))
        except ValueError:
            raise TamperedError("log entry: its fingerprint is none") from None

    def shown_by(self, y: Reals, grid: Grid) -> bool:
        """Whether a picture, or the part of one, looks like a part of this one of its size.

        Args:
            y: luma (H, W).
            grid: where the blocks lie.
        """
        part = _cells(y, grid, self.per_block).astype(np.float64)
        if part.size == 0 or part.std() < _CHARACTERISTIC:
            return False
        whole, step = self.cells.astype(np.float64), self.per_block
        steps = [range(0, whole.shape[axis] - part.shape[axis] + 1, step) for axis in (0, 1)]
        rows, columns = part.shape
        return any(_alike(whole[i : i + rows, j : j + columns], part) for i in steps[0] for j in steps[1])


def _cells(y: Reals, grid: Grid, per_block: int) -> NDArray[np.uint8]:
    side = BLOCK // per_block
    bottom, right = grid.top + grid.rows * BLOCK, grid.left + grid.columns * BLOCK
    inside = y[grid.top : bottom, grid.left : right]
    shape = (grid.rows * per_block, side, grid.columns * per_block, side)
    return np.rint(inside.reshape(shape).mean((1, 3))).astype(np.uint8)


def _alike(before: NDArray[np.float64], after: NDArray[np.float64]) -> bool:
    b, a = before - before.mean(), after - after.mean()
    if b.std() < _CHARACTERISTIC:
        return False
    slope = a.std() / b.std()
    return bool((a * b).mean() >= _ALIKE * a.std() * b.std() and _SLOPES[0] <= slope <= _SLOPES[1])


@final
@dataclass(frozen=True, kw_only=True)
class Logged(Record):
    """What the log says of one picture."""

    sequence: int
    time: str
    subject: str
    sha256: str
    identifier: int
    profile: str
    fingerprint: str


@dataclass(frozen=True)
class ImageLog:
    """Writes one signed line per marked picture into a journal."""

    profile: ImageProfile
    journal: Journal

    def record(self, pixels: NDArray[np.uint8], *, identifier: int, sha256: str, subject: str) -> None:
        """Note a marked picture (H, W, 3) and return when it is on disk; ``sha256`` is that of its file.

        Args:
            pixels: pixels (H, W, 3), uint8.
            identifier: the number that the picture carries.
            sha256: digest of the picture's file, in hexadecimal.
            subject: the picture's name in the journal.
        """
        y = luma(pixels)
        facts = {
            "fingerprint": Looks.of(y, Grid.of(y.shape)).to_text(),
            "identifier": identifier,
            "profile": self.profile.digest(),
            "version": VERSION,
        }
        self.journal.record("mark", subject, role=_canon.canonical(facts).decode(), sha256=sha256)


def read_log(path: str | Path, *, trusted: Sequence[Identity]) -> list[Logged]:
    """All pictures in a journal whose every line is verified.

    Args:
        path: the journal's file.
        trusted: who may have signed its lines.

    Raises:
        TamperedError: the journal does not hold.
    """
    journal.verify(path, trusted=trusted)
    out: list[Logged] = []
    for entry in journal.read(path):
        facts = _facts(entry.role)
        if entry.action == "mark" and "identifier" in facts:
            out.append(
                Logged(
                    sequence=entry.sequence,
                    time=entry.time,
                    subject=entry.subject,
                    sha256=entry.sha256,
                    identifier=int(facts["identifier"]),
                    profile=str(facts["profile"]),
                    fingerprint=str(facts["fingerprint"]),
                )
            )
    return out


def _facts(role: str) -> dict[str, Any]:
    try:
        value = json.loads(role)
    except ValueError:
        return {}
    return value if isinstance(value, dict) and value.get("version") == VERSION else {}


class Attributed(StrEnum):
    """How a picture stands to the log."""

    FOUND = "found"
    COPIED = "copied"
    NOT_FOUND = "not found"


@final
@dataclass(frozen=True, kw_only=True)
class Attribution(Record):
    """The answer, and every fact behind it: the file itself, the mark, its entries, and which of them it looks like."""

    answer: Attributed
    same_file: tuple[int, ...]
    mark_found: bool
    accepted: bool
    entries: tuple[int, ...]
    alike: tuple[int, ...]
    verdict: Verdict


def attribute(
    rgb: NDArray[np.uint8],
    detections: ImageDetections,
    log: Sequence[Logged],
    *,
    sha256: str = "",
    log10_level: float = -6.0,
    tests: float = 1.0,
) -> Attribution:
    """Whether this picture is one of the log.

    *Found*: it is a logged file, or carries a mark and looks like (a part of) an entry with the identifier it carries.
    *Copied*: it carries a mark and looks like none of them. *Not found*: no mark at this level, or no such identifier.

    Args:
        rgb: pixels (H, W, 3), uint8.
        detections: what a detector found in the picture.
        log: the pictures of the log.
        sha256: digest of the picture's file, in hexadecimal.
        log10_level: log10 of the level, at most 0, over all tests together.
        tests: pictures and keys tested beside it, at least 1.
    """
    reading, verdict = detections.readings[0], detections.verdict(0, tests=tests)
    found = verdict.log10_p_corrected <= log10_level
    profile, identifier = detections.profile.digest(), reading.best[1]
    named = [entry for entry in log if entry.profile == profile and entry.identifier == identifier] if found else []
    alike = [entry for entry in named if _looks_like(rgb, reading, entry)]
    same = tuple(entry.sequence for entry in log if sha256 and entry.sha256 == sha256)
    answer = Attributed.NOT_FOUND
    if same or alike:
        answer = Attributed.FOUND
    elif named:
        answer = Attributed.COPIED
    return Attribution(
        answer=answer,
        same_file=same,
        mark_found=found,
        accepted=found and bool(detections.accepted(log10_level=0.0)[0]),
        entries=tuple(entry.sequence for entry in named),
        alike=tuple(entry.sequence for entry in alike),
        verdict=verdict,
    )


def _looks_like(rgb: NDArray[np.uint8], reading: Reading, entry: Logged) -> bool:
    return Looks.from_text(entry.fingerprint).shown_by(luma(reading.placement.applied(rgb)), reading.evidence.grid)
