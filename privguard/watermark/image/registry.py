# SPDX-License-Identifier: Apache-2.0
"""The log of marked pictures, and attribution: mark, identifier and looks, each fact apart.

One signed journal line per picture says which identifier it got, under which profile, and roughly what it looks like. A
mark on a picture that does not look like its entry was carried there. How pictures look is a heuristic: it decides
between "found" and "copied", and no probability is quoted for it.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeAlias, final

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

Window: TypeAlias = tuple[slice, slice]

_FINE_BLOCKS = 4000  # up to here two by two cells of a block are noted, above one
_FEWEST, _MANY = 16, 100  # cells with evidence: fewer are not compared, and from so many on chance likeness is small
_ALIKE, _ALIKE_IF_FEW = 0.75, 0.95  # correlations: honest edits measured 0.776 and above, crops of few cells 0.99
_UNLIKE = 0.7  # foreign pictures measured 0.51 and below, but for one of 150 with 0.695
_TOGETHER = 0.8  # of the cells with evidence, where a part is laid over a whole: it may lie in a larger picture
_SLOPES = (1 / 3, 3.0)  # of contrast: a faint copy of the shading is not the picture
_CHARACTERISTIC = 2.0  # grey levels: cells that vary less beyond their surroundings have no looks to compare
_CARRYING = 2.0  # deviations: what a block with evidence has at least


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

    def likeness(self, y: Reals, grid: Grid, carrying: NDArray[np.bool_]) -> float | None:
        """How far the blocks that carry a mark look like a part of this picture: the best correlation over all places.

        Compared is what each cell has beyond its surroundings, so captions, vignettes and contrast do not count; blocks
        without evidence, such as what was pasted in, are left out. None where there is too little to compare, or where
        the likeness is a faint one.

        Args:
            y: luma (H, W).
            grid: where the blocks lie.
            carrying: (rows, columns), whether each block carries evidence.
        """
        part, used = _cells(y, grid, self.per_block), _each_cell(carrying, self.per_block)
        after = _beyond_surroundings(part, used)
        if used.sum() < _FEWEST or after[used].std() < _CHARACTERISTIC:
            return None
        fits = [
            _fit(_beyond_surroundings(self.cells[there], used[here])[used[here]], after[here][used[here]])
            for there, here in _overlaps(self.cells.shape, part.shape, self.per_block)
            if used[here].sum() >= max(_FEWEST, _TOGETHER * used.sum())
        ]
        correlation, slope = max(fits, default=(-1.0, 1.0))
        return None if correlation >= _UNLIKE and not _SLOPES[0] <= slope <= _SLOPES[1] else correlation


def _cells(y: Reals, grid: Grid, per_block: int) -> NDArray[np.uint8]:
    side = BLOCK // per_block
    bottom, right = grid.top + grid.rows * BLOCK, grid.left + grid.columns * BLOCK
    inside = y[grid.top : bottom, grid.left : right]
    shape = (grid.rows * per_block, side, grid.columns * per_block, side)
    return np.rint(inside.reshape(shape).mean((1, 3))).astype(np.uint8)


def _overlaps(whole: tuple[int, ...], part: tuple[int, ...], step: int) -> Iterator[tuple[Window, Window]]:
    """Every way to lay a part over a whole, block by block, also beyond its edges: the common cells in each of them."""
    sides: list[list[tuple[slice, slice]]] = []
    for n, m in zip(whole, part, strict=True):
        starts = range(step - m, n, step)
        sides.append([(slice(max(0, k), min(n, k + m)), slice(max(0, -k), min(m, n - k))) for k in starts])
    for rows, columns in itertools.product(*sides):
        yield (rows[0], columns[0]), (rows[1], columns[1])


def _each_cell(blocks: NDArray[np.bool_], per_block: int) -> NDArray[np.bool_]:
    return blocks.repeat(per_block, axis=0).repeat(per_block, axis=1)


def _beyond_surroundings(cells: NDArray[np.uint8], used: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Cells without the mean of the used ones around them, five by five."""
    from scipy.ndimage import uniform_filter

    share = uniform_filter(used.astype(np.float64), 5, mode="constant")
    mean = uniform_filter(cells * used.astype(np.float64), 5, mode="constant") / np.maximum(share, 1e-9)
    return cells - mean


def _fit(before: NDArray[np.float64], after: NDArray[np.float64]) -> tuple[float, float]:
    """Correlation of the ranks (Spearman), which a few strange cells do not decide, and the slope of the values."""
    from scipy.stats import rankdata

    b, a = before - before.mean(), after - after.mean()
    slope = float((a * b).mean() / ((b * b).mean() + 1e-9))
    b, a = (rankdata(each) - (len(each) + 1) / 2 for each in (b, a))
    return float((a * b).mean() / (a.std() * b.std() + 1e-9)), slope


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
    UNDECIDED = "undecided"
    NOT_FOUND = "not found"


@final
@dataclass(frozen=True, kw_only=True)
class Attribution(Record):
    """The answer, and every fact behind it: the file itself, the mark, its entries, and which of them it looks like.

    ``likeness`` has one correlation for each of ``entries``, a heuristic; None where there was too little to compare.
    ``carrying`` is the share of the blocks with contrast that carry the mark; what else it shows is not judged.
    """

    answer: Attributed
    same_file: tuple[int, ...]
    mark_found: bool
    accepted: bool
    entries: tuple[int, ...]
    alike: tuple[int, ...]
    likeness: tuple[float | None, ...]
    carrying: float
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
    *Copied*: it carries a mark, and where it does it looks like none of them. *Undecided*: too little of it carries the
    mark, or it is too changed, to say which. *Not found*: no mark at this level, or no such identifier.

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
    likeness = [_likeness(rgb, reading, entry) for entry in named]
    cells = 0 if not named else _carrying_cells(reading, named[0])
    least = _ALIKE if cells >= _MANY else _ALIKE_IF_FEW
    alike = [entry for entry, like in zip(named, likeness, strict=True) if like is not None and like >= least]
    same = tuple(entry.sequence for entry in log if sha256 and entry.sha256 == sha256)
    answer = Attributed.NOT_FOUND
    if same or alike:
        answer = Attributed.FOUND
    elif named:
        unlike = all(like is not None and like < _UNLIKE for like in likeness)
        answer = Attributed.COPIED if unlike else Attributed.UNDECIDED
    return Attribution(
        answer=answer,
        same_file=same,
        mark_found=found,
        accepted=found and bool(detections.accepted(log10_level=0.0)[0]),
        entries=tuple(entry.sequence for entry in named),
        alike=tuple(entry.sequence for entry in alike),
        likeness=tuple(likeness),
        carrying=float(_carrying(reading).sum() / max(1, (reading.evidence.block_hash >= 0).sum())) if found else 0.0,
        verdict=verdict,
    )


def _likeness(rgb: NDArray[np.uint8], reading: Reading, entry: Logged) -> float | None:
    y = luma(reading.placement.applied(rgb))
    return Looks.from_text(entry.fingerprint).likeness(y, reading.evidence.grid, _carrying(reading))


def _carrying(reading: Reading) -> NDArray[np.bool_]:
    """Which blocks carry the evidence, (rows, columns): those whose hash brings at least two deviations."""
    evidence = reading.evidence
    deviation = np.sqrt((evidence.weights.astype(np.float64) ** 2).sum(1) * reading.scores.shape[1])
    strong = np.append(reading.parts >= _CARRYING * deviation, np.False_)  # −1, a block that was left out, is the last
    return strong[evidence.block_hash].reshape(evidence.grid.rows, evidence.grid.columns)


def _carrying_cells(reading: Reading, entry: Logged) -> int:
    return int(_carrying(reading).sum()) * Looks.from_text(entry.fingerprint).per_block ** 2
