# SPDX-License-Identifier: Apache-2.0
"""A page for people: the answer, the picture with the blocks that carry evidence, and what this does not prove.

One self-contained HTML page, no script, nothing loaded from elsewhere. Who has the page can see which blocks carry the
mark, and so does a forger: it is for the owner's side.
"""

import base64
import html
import io
import math
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from privguard.records import Verdict
from privguard.watermark.image.detect import ImageDetections, ImageDetector
from privguard.watermark.image.keys import BLOCK
from privguard.watermark.statistics.tails import Floats

NOT_PROVEN = (
    "Who made the picture, or when: it only agrees with the key beyond chance.",
    "That a camera took a picture in which no mark was found: regeneration, strong edits and small size remove it.",
    "That the whole picture is marked: only coloured blocks are evidence, and a part may lie in another picture.",
    "That nobody carried the mark here: ask the signed log whether the picture looks like its entry.",
    "Anything by itself, unless the secret is known to be older than the picture: have the profile timestamped.",
    "Anything about one block: without a mark one in six is coloured. Only the sum counts.",
)
_COLOURED = 1.0  # deviations
_FULL = 8.0
_LONG_SIDE = 1024  # pixels; the picture on the page is made smaller than this


@final
@dataclass(frozen=True, kw_only=True)
class ImageReport:
    """One picture's detection for people.

    ``upright`` (H, W, 3) is the picture as it lies when it is read; ``block_z`` (rows, columns) says how far each block
    agrees, and the grid begins at ``(top, left)``.
    """

    verdict: Verdict
    log10_level: float
    accepted: bool
    upright: NDArray[np.uint8]
    block_z: Floats
    used: NDArray[np.bool_]
    top: int
    left: int

    @classmethod
    def of(
        cls,
        detector: ImageDetector,
        detections: ImageDetections,
        rgb: NDArray[np.uint8],
        *,
        log10_level: float = -6.0,
        tests: float = 1.0,
    ) -> "ImageReport":
        """The report on the first picture of ``detections``, which was read from ``rgb``.

        Args:
            detector: the detector that read.
            detections: what it found.
            rgb: pixels (H, W, 3), uint8.
            log10_level: log10 of the level, at most 0.
            tests: pictures and keys tested beside it, at least 1.
        """
        reading, verdict = detections.readings[0], detections.verdict(0, tests=tests)
        grid = reading.evidence.grid
        found = verdict.log10_p_corrected <= log10_level
        return cls(
            verdict=verdict,
            log10_level=log10_level,
            accepted=found and bool(detections.accepted(log10_level=0.0)[0]),
            upright=reading.placement.applied(rgb),
            block_z=detector.block_z(reading),
            used=(reading.evidence.block_hash >= 0).reshape(grid.rows, grid.columns),
            top=grid.top,
            left=grid.left,
        )

    @property
    def answer(self) -> str:
        """The result in one or two sentences."""
        p = self.verdict.log10_p_corrected
        if p > self.log10_level:
            return (
                "No mark was found at the chosen level: chance alone gives such agreement with probability "
                f"{_odds(p)}. This is no evidence that a camera took the picture."
            )
        found = f"The mark was found: a picture made without the secret agrees this well with probability {_odds(p)}."
        if self.accepted:
            return f"{found} It lies all over the picture, under one sub-key."
        return f"{found} But it lies in a part of the picture, or many sub-keys agree: no attribution is made."

    def to_html(self) -> str:
        """One self-contained page."""
        facts = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in self._facts())
        return _PAGE.format(
            answer=html.escape(self.answer),
            facts=facts,
            null=html.escape(self.verdict.null_model),
            picture=self._picture(),
            doubts="".join(f"<li>{html.escape(text)}</li>" for text in NOT_PROVEN),
        )

    def _facts(self) -> list[tuple[str, str]]:
        v, d = self.verdict, self.verdict.details
        agreeing = int((self.block_z > _COLOURED).sum())
        return [
            ("scheme", v.scheme),
            ("probability by chance", f"{_odds(v.log10_p_corrected)} (log10 p = {v.log10_p_corrected:.2f}, {v.bound})"),
            ("level chosen beforehand", _odds(self.log10_level)),
            ("identifier", str(d["identifier"]) if v.log10_p_corrected <= self.log10_level else "– (no mark found)"),
            ("blocks that agree", f"{agreeing} of {int(self.used.sum())}; by chance one in six would"),
            ("blocks left out for want of contrast", str(int((~self.used).sum()))),
            ("without the best third of the hashes", f"log10 p = {d['elsewhere_log10_p']:.2f}"),
            ("tests paid for", f"{d['tests_paid_for']:g} sub-keys and identifiers, {v.multiplicity:g} pictures"),
            ("key id", str(d["key_id"])),
            ("profile", str(d["profile"])),
        ]

    def _picture(self) -> str:
        height, width = self.upright.shape[:2]
        cells = "".join(
            _cell(self.left + j * BLOCK, self.top + i * BLOCK, float(self.block_z[i, j]), used=bool(self.used[i, j]))
            for i in range(self.used.shape[0])
            for j in range(self.used.shape[1])
        )
        return (
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="the picture with its blocks">'
            f'<image width="{width}" height="{height}" href="data:image/jpeg;base64,{_jpeg(self.upright)}"/>'
            f"{cells}</svg>"
        )


def _jpeg(rgb: NDArray[np.uint8]) -> str:
    image, file = Image.fromarray(rgb), io.BytesIO()
    image.thumbnail((_LONG_SIDE, _LONG_SIDE))
    image.save(file, "JPEG", quality=80)
    return base64.b64encode(file.getvalue()).decode()


def _cell(x: int, y: int, z: float, *, used: bool) -> str:
    box = f'x="{x}" y="{y}" width="{BLOCK}" height="{BLOCK}"'
    if not used:
        return f'<rect {box} class="n"><title>left out: no contrast</title></rect>'
    strength = float(np.clip((z - _COLOURED) / (_FULL - _COLOURED), 0.0, 1.0))
    opacity = 0.0 if z <= _COLOURED else 0.2 + 0.5 * strength
    return f'<rect {box} class="b" fill-opacity="{opacity:.2f}"><title>{z:.1f} deviations</title></rect>'


def _odds(log10_p: float) -> str:
    if log10_p > -2:  # noqa: PLR2004 — above one in a hundred, a plain number reads better
        return f"{10**log10_p:.2f}"
    exponent = math.floor(log10_p)
    return f"{10 ** (log10_p - exponent):.1f} · 10^{exponent}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Image mark: detection report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}}
h1{{font-size:1.4rem}} h2{{font-size:1.1rem;margin-top:2rem}}
.answer{{font-size:1.15rem;border-left:4px solid #2a8a5f;padding-left:1rem}}
table{{border-collapse:collapse}} td{{overflow-wrap:anywhere}}
th{{text-align:left;font-weight:500;padding:.15rem 1rem .15rem 0;vertical-align:top}}
svg{{width:100%;height:auto}} rect{{stroke:#fff;stroke-opacity:.35}} .b{{fill:#12a150}} .n{{fill:#777;fill-opacity:.55}}
</style></head><body>
<h1>Image mark: detection report</h1>
<p class="answer">{answer}</p>
<h2>The picture</h2>
<p>The greener a block, the stronger it agrees with the key. Grey blocks have too little contrast to count.</p>
{picture}
<h2>What was measured</h2><table>{facts}</table>
<p>Without a mark: {null}.</p>
<h2>What this does not prove</h2><ul>{doubts}</ul>
</body></html>
"""
