# SPDX-License-Identifier: Apache-2.0
"""One part of ours beside vectors of the suspect: units by assignment, heads by the spaces they span, tokens by place.

Every rule makes the suspect as near as possible to the unmarked copy, and looks at the two alone. What has no
counterpart is NaN.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from privguard.watermark.model.lay.stream import Array, Source, View, bases, unit
from privguard.watermark.model.lay.structure import HEADS, TOKENS, Part

Places: TypeAlias = NDArray[np.int64]
NEAR = 0.5  # cosine from which a pair of vectors counts as the same one
TWIN = 0.9  # and from which a left-over unit is a piece of a split one
_RANK = 1e-6  # of a head's vectors, beside the largest


def least(part: Part, ours: Array) -> float:
    """The nearness below which a source is no counterpart.

    The best of n random directions has a cosine of about √(2 ln n / width), and a random space of ``head`` dimensions
    an overlap of head / width.
    """
    width = ours.shape[1]
    if part.kind == HEADS:
        return min(0.9, part.head / width + 0.15)
    if part.kind == TOKENS:
        return 0.1
    return min(0.8, max(0.4, 1.25 * float(np.sqrt(2 * np.log(max(2, len(ours))) / width))))


def pairs(theirs: Array, ours: Array) -> tuple[Places, Places, Array]:
    """The best pairs (theirs, ours) of unit rows, each row at most once, and all cosines."""
    cosines = theirs @ ours.T
    left, right = linear_sum_assignment(np.abs(cosines), maximize=True)
    near = np.abs(cosines[left, right]) > NEAR
    return np.asarray(left[near], np.int64), np.asarray(right[near], np.int64), cosines


def units(rows: Array, ours: Array) -> tuple[Array, Places]:
    """Their rows at our places, scaled to ours by projection, sign included; and their place of each of ours, or −1."""
    theirs, mine, _ = pairs(unit(rows), unit(ours))
    laid, places = np.full(ours.shape, np.nan), np.full(len(ours), -1)
    laid[mine] = scaled(rows[theirs], ours[mine])
    places[mine] = theirs
    return laid, places


def scaled(theirs: Array, ours: Array) -> Array:
    """Each row of theirs at the scale of ours by least squares, sign included."""
    own = (ours**2).sum(1)
    scale = (theirs * ours).sum(1) / np.where(own > 0, own, 1.0)
    return theirs / np.where(scale == 0, 1.0, scale)[:, None]


def heads(view: View, source: Source, ours: Array, size: int) -> tuple[Array, int]:
    """Our heads as far as they lie in the space of the head of theirs that overlaps most, and how many there are.

    Maps between queries and keys, and between values and outputs, mix a head's vectors for nothing. Whatever the map,
    the space stays; the best copy of ours in it is the projection, which leaves out head / width of a mark.
    """
    theirs = view.heads(source, size)
    blocks = view.rows(source)[: len(theirs) * size].reshape(len(theirs), size, -1)
    laid = np.full(ours.shape, np.nan)
    mine = bases(ours, size)
    shares = overlaps(theirs, mine)
    taken = 0
    for number in range(len(mine)):
        nearest = int(shares[:, number].argmax())
        if shares[nearest, number] <= _head_floor(size, ours.shape[1]):
            continue
        place = slice(number * size, (number + 1) * size)
        mixed = np.linalg.lstsq(blocks[nearest].T, ours[place].T, rcond=_RANK)[0]
        laid[place] = (blocks[nearest].T @ mixed).T
        taken += 1
    return laid, taken


def tokens(view: View, source: Source, ours: Array) -> tuple[Array, int]:
    """Their rows at the same places with one scale for all."""
    laid = np.full(ours.shape, np.nan)
    theirs = view.tokens(source, len(ours))
    own = ours[: len(theirs)]
    scale = (theirs * own).sum() / max((own**2).sum(), 1e-30)
    laid[: len(theirs)] = theirs / (scale or 1.0)
    return laid, len(theirs)


def _head_floor(size: int, width: int) -> float:
    return min(0.9, size / width + 0.1)


def overlaps(theirs: Array, ours: Array) -> Array:
    """(theirs, ours): the share of our head's space that lies in theirs, from bases (heads, width, size)."""
    size = theirs.shape[2], ours.shape[2]
    products = theirs.transpose(0, 2, 1).reshape(-1, theirs.shape[1]) @ ours.transpose(1, 0, 2).reshape(
        ours.shape[1], -1
    )
    return (products.reshape(len(theirs), size[0], len(ours), size[1]) ** 2).sum((1, 3)) / size[1]
