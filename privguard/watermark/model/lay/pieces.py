# SPDX-License-Identifier: Apache-2.0
"""Units of the suspect that are pieces of one of ours, and units that are nobody's.

A unit can be split into several with its inputs, whose outputs add up to its own; each alone can be mostly noise that
another takes back. And a unit can be added: a dead one, or a guard that wakes on triggers.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np

from privguard.watermark.model.lay import matching
from privguard.watermark.model.lay.matching import TWIN, Places
from privguard.watermark.model.lay.stream import Array, Source, View, unit
from privguard.watermark.model.lay.structure import Part

Sources: TypeAlias = Mapping[Part, Source]
_SUMS = " (summed)"


def summed(view: View, ours: Mapping[Part, Array], sources: Sources) -> Sources:
    """The sources, with the sums of pieces' outputs in place of outputs where those are nearer to ours."""
    better = dict(sources)
    for gate in [part for part in sources if part.role == "gate"]:
        numbers, twins, factors = _pieces(view, ours, sources, gate)
        if len(numbers) == len(np.unique(twins)):
            continue  # nothing was split
        down = _sibling(ours, gate, "down")
        if down is None:
            continue
        options = [sources[down]] if down in sources else view.suspect.sources(len(view.turn), gains=False)
        tried = list[tuple[float, Source, Array]]()
        for source in options:
            outputs = view.suspect.rows(source)
            for shift in _shifts(view, ours, sources, gate, down):
                inside = (numbers + shift >= 0) & (numbers + shift < len(outputs))
                total = np.zeros((len(ours[down]), outputs.shape[1]))
                np.add.at(total, twins[inside], factors[inside, None] * outputs[numbers[inside] + shift])
                tried.append((_agreement(total @ view.turn, ours[down]), source, total))
        near, source, total = max(tried, key=lambda item: item[:2])
        alone = matching.units(view.rows(source), ours[down])[0] if down in sources else np.zeros(ours[down].shape)
        if near > _agreement(np.nan_to_num(alone), ours[down]):
            better[down] = view.suspect.add(source.tensor + _SUMS, total)
    return better


def strangers(view: View, ours: Mapping[Part, Array], sources: Sources, gate: Part) -> Iterator[tuple[int, str]]:
    """Their units that are none of ours, copies of none and not dead, with how much each reads and writes."""
    down = _sibling(sources, gate, "down")
    if down is None or sources[gate].tensor == sources[down].tensor:
        return
    outputs = sources[down]
    if outputs.tensor.endswith(_SUMS):
        name = outputs.tensor.removesuffix(_SUMS)
        outputs = next(item for item in view.suspect.sources(len(view.turn), gains=False) if item.tensor == name)
    near = np.abs(view.units(sources[gate]) @ unit(ours[gate]).T).max(1)
    reads, writes = (np.linalg.norm(view.rows(source), axis=1) for source in (sources[gate], outputs))
    usual = np.median(reads) or 1.0, np.median(writes) or 1.0
    shift = _shifts(view, ours, {**sources, down: outputs}, gate, down)[0]
    for number in np.flatnonzero((near <= TWIN) & (reads > 0)).tolist():
        if 0 <= number + shift < len(writes) and writes[number + shift] > 0:
            size = reads[number] / usual[0], writes[number + shift] / usual[1]
            yield number, f"{number} reads {size[0]:.1f} and writes {size[1]:.1f} times the usual"


def _pieces(view: View, ours: Mapping[Part, Array], sources: Sources, gate: Part) -> tuple[Places, Places, Array]:
    """Their units that have the inputs of one of ours, that one, and how often its output each counts for."""
    cosines = view.units(sources[gate]) @ unit(ours[gate]).T
    twins = np.abs(cosines).argmax(1)
    numbers = np.flatnonzero(np.abs(cosines).max(1) > TWIN)
    up = _sibling(sources, gate, "up")
    if up is None:
        return numbers, twins[numbers], np.ones(len(numbers))
    rows, shift = view.rows(sources[up]), _shifts(view, ours, sources, gate, up)[0]
    numbers = numbers[(numbers + shift >= 0) & (numbers + shift < len(rows))]
    theirs, own = rows[numbers + shift], ours[up][twins[numbers]]
    near = np.abs((unit(theirs) * unit(own)).sum(1)) > TWIN
    factors = (theirs * own).sum(1) / np.maximum((own**2).sum(1), 1e-30)
    return numbers[near], twins[numbers[near]], factors[near]


def _agreement(theirs: Array, ours: Array) -> float:
    return float((unit(theirs) * unit(ours)).sum(1).mean())


def _sibling(parts: Mapping[Part, object], part: Part, role: str) -> Part | None:
    return next((item for item in parts if item.layer == part.layer and item.role == role), None)


def _shifts(view: View, ours: Mapping[Part, Array], sources: Sources, part: Part, other: Part) -> list[int]:
    """By how much a unit's numbers differ in two tensors: the commonest differences, and none.

    Which copy of a split unit is matched is chance, so there can be several.
    """
    if part not in sources or other not in sources:
        return [0]
    places, others = (matching.units(view.rows(sources[item]), ours[item])[1] for item in (part, other))
    both = (places >= 0) & (others >= 0)
    counts = Counter((others[both] - places[both]).tolist())
    return [*(shift for shift, _ in counts.most_common(2)), 0]
