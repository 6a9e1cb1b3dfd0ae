# SPDX-License-Identifier: Apache-2.0
"""``lay-1``: lay a suspect beside an unmarked chain of layers, and leave out what has no counterpart there.

A thief can rename, reorder, rescale, split, drop or add units, and put in layers that do nothing, without a change in
the answers. Every step here undoes one such freedom by making the suspect *as close as possible to the unmarked copy*:
layers are found by what is in them and never by their names, units by rectangular assignment. Suspect and unmarked
copy were there before the pulse, and this is a function of the two alone, without chance and without a setting; so the
signs of a leaf are uniform given what comes out, and P(Z ≥ z) ≤ exp(−z²/2) holds as it stands (Hoeffding 1963),
however much is searched here. Laying beside the *marked* copy would write the key into the suspect.

What has no counterpart is NaN, *missing and not zero*: a tensor with half its rows at zero residual would look hardly
changed, and so outweigh all others with noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from privguard.watermark.model.lay.laid import Laid, Layer, missing

Array: TypeAlias = NDArray[np.float64]
Tensors: TypeAlias = Mapping[str, NDArray[Any]]
PROGRAM = "lay-1"
_NEAR = 0.5  # cosine from which a pair of units counts as the same one
_TWIN = 0.95  # and from which a left-over unit is a piece of a split one
_LAYER = 0.3  # mean best cosine below which a layer has no counterpart
_REST = 0.05  # share of a row that may stand beside its one entry in a layer that does nothing


@final
@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A suspect's layer at the present place: its rows with columns in our order, and how near they are to ours."""

    name: str
    through: tuple[str, ...]
    rows: Array
    near: float


def lay(suspect: Tensors, *, unmarked: Tensors, order: Sequence[str]) -> Laid:
    """Lay ``suspect`` beside ``unmarked``, a chain of linear or convolutional layers.

    ``order`` names the unmarked copy's weights front to back, each (units, inputs, *kernel). Normalisation and biases
    need no folding: the scales of a unit's incoming and of its outgoing weights are fitted apart.
    """
    free = {name: _matrix(value) for name, value in suspect.items() if value.ndim > 1}
    columns: tuple[Array | None, ...] = (None,)  # (their units, our units): what theirs count for in ours
    tensors, layers = dict[str, NDArray[np.float32]](), list[Layer]()
    for number, name in enumerate(order):
        ours = _matrix(unmarked[name])
        chosen = max(_candidates(free, ours, columns), key=lambda item: item.near, default=None)
        if chosen is None or (chosen.near < _LAYER and number > 0):
            tensors[name] = missing(unmarked[name])
            layers.append(Layer(name=name, units=len(ours)))
            columns = (np.zeros((0, len(ours))),)
            continue
        for used in (*chosen.through, chosen.name):
            free.pop(used)
        rows, columns, layer = _units(chosen.rows, ours)
        tensors[name] = rows.reshape(unmarked[name].shape).astype(np.float32)
        theirs = chosen.name if layer[0] else None
        layers.append(Layer(name=name, theirs=theirs, units=len(ours), matched=layer[0], strangers=layer[1]))
    return Laid(tensors=tensors, layers=tuple(layers))


def _matrix(value: NDArray[Any]) -> Array:
    """(units, inputs, kernel) as float64; what is no number counts as nothing."""
    return np.nan_to_num(np.asarray(value, np.float64).reshape(value.shape[0], value.shape[1], -1), posinf=0, neginf=0)


def _candidates(
    free: Mapping[str, Array], ours: Array, columns: Sequence[Array | None], through: tuple[str, ...] = ()
) -> list[_Candidate]:
    """Every layer of the suspect that can stand at ours, directly or behind layers that only pass units on."""
    found: list[_Candidate] = []
    for name, theirs in free.items():
        if name in through:
            continue
        for option in columns:
            rows = _in_our_columns(theirs, ours, option)
            if rows is not None:
                found.append(_Candidate(name=name, through=through, rows=rows, near=_nearness(rows, ours)))
            passed = _passes(theirs, np.eye(theirs.shape[1]) if option is None else option)
            if passed is not None and len(through) < len(free) - 1:
                found += _candidates(free, ours, (passed,), (*through, name))
    return found


def _in_our_columns(theirs: Array, ours: Array, columns: Array | None) -> Array | None:
    """Their rows with our inputs on the second axis, NaN where we have an input that nothing of theirs stands for."""
    if columns is None:
        return theirs if theirs.shape[1:] == ours.shape[1:] else None
    units, inputs = columns.shape
    if units == 0 or theirs.shape[1] % units or ours.shape[1] % inputs or theirs.shape[2] != ours.shape[2]:
        return None
    pixels = theirs.shape[1] // units  # a channel's pixels, once it is flattened
    if pixels != ours.shape[1] // inputs:
        return None
    blocks = theirs.reshape(len(theirs), units, -1)
    rows = np.einsum("oxk,xj->ojk", blocks, columns)
    rows[:, ~columns.any(0)] = np.nan
    return rows.reshape(len(theirs), *ours.shape[1:])


def _passes(theirs: Array, columns: Array) -> Array | None:
    """What a layer that only copies, reorders or rescales its inputs makes of the columns; ``None`` for other layers.

    Each row holds at most one entry to speak of, positive, at one place of the kernel; a row of nothing is a dead unit.
    """
    if theirs.shape[1] != len(columns) or len(theirs) < columns.shape[1]:
        return None
    flat = np.abs(theirs).reshape(len(theirs), -1)
    top, largest = flat.max(1), flat.max()
    alone = flat.sum(1) - top <= _REST * top
    if not largest or not (alone | (top <= _REST * largest)).all():
        return None
    summed = theirs.sum(2)
    if (summed < -_REST * largest).any():
        return None
    return np.where(np.abs(summed) > _REST * largest, summed, 0.0) @ columns


def _nearness(rows: Array, ours: Array) -> float:
    """Mean over our units of the cosine with the nearest of theirs."""
    return float(np.abs(_cosines(rows, ours)).max(0).mean())


def _cosines(rows: Array, ours: Array) -> Array:
    """(theirs, ours): cosines over the inputs that both have."""
    known = np.isfinite(rows).all((0, 2))
    if not known.any():
        return np.zeros((len(rows), len(ours)))
    left, right = (_unit(item[:, known].reshape(len(item), -1)) for item in (rows, ours))
    return left @ right.T


def _unit(rows: Array) -> Array:
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(size > 0, size, 1.0)


def _units(rows: Array, ours: Array) -> tuple[Array, tuple[Array, ...], tuple[int, tuple[int, ...]]]:
    """Their units in our order and scale, what each counts for in ours, and (matched, those without counterpart).

    What it counts for is given twice: as it follows from its scale where nothing but a rectifier follows, and without
    that scale, where a normalisation takes it out again. The nearer to ours counts.
    """
    theirs, mine = _match(rows, ours)
    rows = _fit_columns(rows, ours, theirs, mine)  # scales of what leads here; with them, units match better
    theirs, mine = _match(rows, ours)
    rows = _fit_columns(rows, ours, theirs, mine)
    scale = _projection(rows[theirs], ours[mine])
    laid = np.full(ours.shape, np.nan)
    laid[mine] = rows[theirs] / scale[:, None, None]
    columns = np.zeros((len(rows), len(ours)))
    columns[theirs, mine] = scale
    cosines, strangers = _cosines(rows, ours), list[int]()
    for extra in np.setdiff1d(np.arange(len(rows)), theirs):
        twin = int(np.abs(cosines[extra]).argmax())
        if np.abs(cosines[extra, twin]) > _TWIN and columns[:, twin].any():
            columns[extra, twin] = _projection(rows[extra : extra + 1], ours[twin : twin + 1])[0]
        elif np.abs(rows[extra][np.isfinite(rows[extra])]).sum() > 0:
            strangers.append(int(extra))
    level = np.ones(len(ours))
    level[mine] = scale
    return laid, (columns, columns / level), (len(mine), tuple(strangers))


def _match(rows: Array, ours: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The best pairs (theirs, ours), each unit at most once, without those that are not near."""
    cosines = np.abs(_cosines(rows, ours))
    theirs, mine = linear_sum_assignment(cosines, maximize=True)
    near = cosines[theirs, mine] > _NEAR
    return np.asarray(theirs[near], np.int64), np.asarray(mine[near], np.int64)


def _fit_columns(rows: Array, ours: Array, theirs: NDArray[np.int64], mine: NDArray[np.int64]) -> Array:
    """Divide each input's column by its scale beside ours, once the rows' own scales are taken out."""
    if len(mine) < 2:  # noqa: PLR2004 — one row would fit exactly, and leave nothing to read
        return rows
    level = rows[theirs] / _projection(rows[theirs], ours[mine])[:, None, None]
    scale = np.ones(rows.shape[1])
    known = np.isfinite(level).all((0, 2))
    scale[known] = _projection(level[:, known].transpose(1, 0, 2), ours[mine][:, known].transpose(1, 0, 2))
    return rows / scale[None, :, None]


def _projection(theirs: Array, ours: Array) -> Array:
    """Each row's scale beside ours by least squares, sign included; by size where they are nearly at right angles."""
    known = np.isfinite(theirs)
    theirs, ours = np.where(known, theirs, 0.0), np.where(known, ours, 0.0)
    axes = tuple(range(1, theirs.ndim))
    own, size = (ours * ours).sum(axes), np.sqrt((theirs * theirs).sum(axes))
    projected = (theirs * ours).sum(axes) / np.maximum(own, 1e-30)
    by_size = np.maximum(size / np.maximum(np.sqrt(own), 1e-15), 1e-12)
    return np.where(np.abs(projected) > 0.1 * by_size, projected, by_size)
