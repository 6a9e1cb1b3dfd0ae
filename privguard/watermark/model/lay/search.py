# SPDX-License-Identifier: Apache-2.0
"""Which of the suspect's matrices holds a part of ours: the one whose vectors lie nearest to a sample of ours.

The matrix of the same name is looked at first, and taken where it is near enough; otherwise each is, along either axis
and with each gain. Nearness to the unmarked copy decides, so names can shorten the search and never mislead it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import final

import numpy as np

from privguard.watermark.model.lay.matching import least, overlaps
from privguard.watermark.model.lay.stream import CERTAIN, Array, Source, View, bases, unit
from privguard.watermark.model.lay.structure import HEADS, TOKENS, UNITS, Part

_SAMPLE = 16  # units of a part by which its tensor is looked for
_HEADS = 2  # heads of a part by which its tensor is looked for


@final
class Probe:
    """Samples of our parts, ready to be compared with any of the suspect's matrices."""

    def __init__(self, ours: Mapping[Part, Array]) -> None:
        self.ours = ours
        self._units = {part: unit(_spread(rows)) for part, rows in ours.items() if part.kind == UNITS}
        self._heads = {
            part: bases(rows[: _HEADS * part.head], part.head) for part, rows in ours.items() if part.kind == HEADS
        }

    def find(self, view: View, parts: Iterable[Part]) -> dict[Part, tuple[Source, float]]:
        """The nearest source of each part, and from 0 to about 1 how near it is."""
        best = dict[Part, tuple[Source, float]]()
        known = set(view.suspect.sources(len(view.turn), gains=True))
        for part in parts:
            same = Source(part.tensor, part.axis, part.gain)
            best[part] = (same, self._nearness(view, same, [part])[0] if same in known else -1.0)
        readers = [part for part, (_, near) in best.items() if near < CERTAIN and part.gain]
        writers = [part for part, (_, near) in best.items() if near < CERTAIN and not part.gain]
        for source in known if readers else view.suspect.sources(len(view.turn), gains=False) if writers else ():
            wanted = [*readers, *(() if source.gain else writers)]
            for part, near in zip(wanted, self._nearness(view, source, wanted), strict=True):
                # The smaller name where two are equally near, so that no set's order decides.
                if (near, best[part][0]) > (best[part][1], source):
                    best[part] = (source, near)
        return best

    def sources(self, view: View) -> dict[Part, Source]:
        """The source of every part that has a counterpart at all."""
        found = self.find(view, self.ours)
        return {part: source for part, (source, near) in found.items() if near >= least(part, self.ours[part])}

    def _nearness(self, view: View, source: Source, parts: Sequence[Part]) -> list[float]:
        near = dict.fromkeys(parts, 0.0)
        if units := [part for part in parts if part.kind == UNITS]:
            sample = np.concatenate([self._units[part] for part in units])
            top = np.abs(view.units(source) @ sample.T).max(0)
            pieces = np.split(top, np.cumsum([len(self._units[part]) for part in units])[:-1])
            near |= {part: float(piece.mean()) for part, piece in zip(units, pieces, strict=True)}
        for size in {part.head for part in parts if part.kind == HEADS}:
            heads, theirs = [part for part in parts if part.head == size], view.heads(source, size)
            if len(theirs):
                shares = overlaps(theirs, np.concatenate([self._heads[part] for part in heads])).max(0)
                pieces = np.split(shares, np.cumsum([len(self._heads[part]) for part in heads])[:-1])
                near |= {part: float(piece.mean()) for part, piece in zip(heads, pieces, strict=True)}
        for part in parts:
            if part.kind == TOKENS:
                theirs, mine = unit(view.tokens(source, len(self.ours[part]))), unit(self.ours[part])
                near[part] = float((theirs * mine[: len(theirs)]).sum()) / len(mine)
        return [near[part] for part in parts]


def _spread(rows: Array) -> Array:
    return rows[:: max(1, len(rows) // _SAMPLE)][:_SAMPLE]
