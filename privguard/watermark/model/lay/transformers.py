# SPDX-License-Identifier: Apache-2.0
"""``lay-2``: lay a suspect beside an unmarked transformer, and leave out what has no counterpart there.

No name, order or fusion of the suspect's tensors is believed: each part of ours takes the matrix whose vectors lie
nearest, read along either axis and with any of its gains. The residual stream's turn is fitted on all of them together
(``.stream``), units are assigned, heads compared by their spaces, tokens by place (``.matching``). As with
``lay-1``, it is a function of suspect and unmarked copy alone, without chance: exp(−z²/2) bounds p as it stands.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from privguard.watermark.model.lay import matching, pieces
from privguard.watermark.model.lay.laid import Laid, Layer, missing
from privguard.watermark.model.lay.matching import NEAR
from privguard.watermark.model.lay.pieces import Sources
from privguard.watermark.model.lay.search import Probe
from privguard.watermark.model.lay.stream import (
    Array,
    Source,
    Suspect,
    Tensors,
    View,
    fitted,
    gain_of,
    turns,
    unit,
    vectors,
)
from privguard.watermark.model.lay.structure import HEADS, TOKENS, UNITS, Part, Structure

PROGRAM = "lay-2"
_ROUNDS = 2  # of fitting the stream's turn on what has been matched
_ENOUGH = 0.9  # mean nearness from which no other turn to begin with is tried
_SHARP = 8  # power of its cosine by which a pair counts for the turn: what a thief hid in noise should not turn ours
_FLAT = 1e-6  # of the largest gain: what is divided by less is not read


def lay(suspect: Tensors, *, unmarked: Tensors, structure: Structure, names: Sequence[str]) -> Laid:
    """Lay ``suspect`` beside ``unmarked``, whose transformer ``structure`` describes; returns the tensors ``names``."""
    ours = {part: vectors(unmarked, part, structure) for part in structure.parts}
    probe = Probe(ours)
    view = _first(Suspect(suspect, structure), probe)
    residuals = {name: missing(unmarked[name]) for name in names}
    if view is None:
        layers = tuple(Layer(name=part.name, units=len(rows)) for part, rows in ours.items())
        return Laid(tensors=residuals, layers=layers, program=PROGRAM)
    for _ in range(_ROUNDS):
        matched = list(_matched(view, ours, pieces.summed(view, ours, probe.sources(view))))
        if matched:
            view = View(view.suspect, fitted(matched, view.turn.shape))
    sources = pieces.summed(view, ours, probe.sources(view))
    found = {part: _part(view, source, part, ours[part]) for part, source in sources.items()}
    for part, item in found.items():
        if part.tensor in residuals:
            gain = gain_of(unmarked, part, structure)
            gain = np.where(np.abs(gain) > _FLAT * np.abs(gain).max(), gain, np.nan)
            rows = np.moveaxis(residuals[part.tensor], part.axis, 1)
            rows[part.start : part.stop] = (item[0] - ours[part]) / gain
    tensors = {name: np.asarray(unmarked[name] + value, np.float32) for name, value in residuals.items()}
    layers = tuple(_line(view, part, ours, sources, found) for part in structure.parts)
    return Laid(tensors=tensors, layers=layers, program=PROGRAM)


def _first(suspect: Suspect, probe: Probe) -> View | None:
    """The suspect through the turn under which our units have the nearest counterparts."""
    gates = [part for part in probe.ours if part.role == "gate"]
    best, most = None, -1.0
    for turn in turns(suspect, probe.ours):
        view = View(suspect, turn)
        near = float(np.mean([near for _, near in probe.find(view, gates).values()]))
        best, most = (view, near) if near > most else (best, most)
        if most > _ENOUGH:
            break
    return best


def _matched(view: View, ours: Mapping[Part, Array], sources: Sources) -> Iterator[tuple[Array, Array]]:
    """Pairs of unit rows, theirs before the turn, over units and tokens that are near to one another."""
    for part, source in sources.items():
        if part.kind == HEADS:
            continue
        mine, count = unit(ours[part]), len(ours[part])
        raw = view.suspect.rows(source, tokens=count if part.kind == TOKENS else 0)
        turned, raw = unit(raw @ view.turn), unit(raw)
        if part.kind == UNITS:
            left, right, _ = matching.pairs(turned, mine)
            raw, turned, mine = raw[left], turned[left], mine[right]
        cosines = (turned * mine[: len(turned)]).sum(1)
        near = np.abs(cosines) > NEAR
        weights = np.sign(cosines[near]) * cosines[near] ** _SHARP
        yield raw[near] * weights[:, None], mine[: len(turned)][near]


def _part(view: View, source: Source, part: Part, ours: Array) -> tuple[Array, int]:
    """The part in our frame, NaN where it is missing, and how many of its units, heads or tokens were found."""
    if part.kind == UNITS:
        rows, places = matching.units(view.rows(source), ours)
        return rows, int((places >= 0).sum())
    return matching.heads(view, source, ours, part.head) if part.kind == HEADS else matching.tokens(view, source, ours)


def _line(
    view: View, part: Part, ours: Mapping[Part, Array], sources: Sources, found: Mapping[Part, tuple[Array, int]]
) -> Layer:
    units = len(ours[part]) // (part.head or 1)
    if part not in found:
        return Layer(name=part.name, units=units)
    strangers = dict(pieces.strangers(view, ours, sources, part)) if part.role == "gate" else {}
    return Layer(
        name=part.name, theirs=sources[part].tensor, units=units, matched=found[part][1],
        strangers=tuple(strangers), notes=tuple(strangers.values()),
    )  # fmt: skip
