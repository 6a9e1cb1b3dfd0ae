# SPDX-License-Identifier: Apache-2.0
"""A transformer's vectors of the residual stream, and the frame in which the suspect's and ours are comparable.

RMSNorm lets a thief turn the whole stream by any rotation, LayerNorm by any that keeps the mean; gains can be moved
between a norm and the matrices behind it. The turn is fitted by orthogonal Procrustes (Schönemann 1966), first on token
rows and then on all matched rows beside them: a vocabulary's rows alone let the fit turn part of a mark away.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from privguard.watermark.model.lay.structure import TOKENS, Part, Structure

Array: TypeAlias = NDArray[np.float64]
Tensors: TypeAlias = Mapping[str, NDArray[Any]]
CERTAIN = 0.9  # nearness from which the matrix of the same name is taken, and no other looked at
_TINY = 1e-12
_HALF = 0.5


@final
class Source(NamedTuple):
    """Where vectors of the suspect come from: a tensor, the stream's axis in it, and the gain that it is read with."""

    tensor: str
    axis: int
    gain: str


def unit(rows: Array) -> Array:
    """Rows of length 1; rows of nothing stay."""
    size = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(size > _TINY, size, 1.0)


def gain_of(tensors: Tensors, part: Part, structure: Structure) -> Array:
    """What the norm before a part multiplies the stream with; ones where there is none."""
    if not part.gain:
        return np.ones(1)
    return np.asarray(tensors[part.gain], np.float64) + structure.offset


def vectors(tensors: Tensors, part: Part, structure: Structure) -> Array:
    """A part of our own model, (vectors, width), with the gain in it and without what norms and softmax take out."""
    rows = np.moveaxis(np.asarray(tensors[part.tensor], np.float64), part.axis, 1)[part.start : part.stop]
    return cleared(rows * gain_of(tensors, part, structure), structure, tokens=part.kind == TOKENS)


def cleared(rows: Array, structure: Structure, *, tokens: bool = False) -> Array:
    """Without the stream's mean where LayerNorm removes it, and without what is added to all tokens alike.

    One vector added to every row of an output matrix adds the same to all logits; one added to all embeddings can be
    taken off all positions. Neither changes an answer.
    """
    rows = rows - rows.mean(1, keepdims=True) if structure.centred else rows
    return rows - rows.mean(0) if tokens else rows


@final
class Suspect:
    """A suspect's matrices as lists of vectors of a stream of some width, whatever they are called."""

    def __init__(self, tensors: Tensors, structure: Structure) -> None:
        plain = {
            name: np.nan_to_num(np.asarray(value, np.float64), posinf=0, neginf=0) for name, value in tensors.items()
        }
        self._matrices = {name: value for name, value in plain.items() if value.ndim == 2}  # noqa: PLR2004
        self._gains = {name: value + structure.offset for name, value in plain.items() if value.ndim == 1}
        self.structure = structure

    def sources(self, width: int, *, gains: bool) -> list[Source]:
        """Every way of reading a matrix along a stream of this width."""
        names = [name for name, value in self._gains.items() if len(value) == width] if gains else []
        places = [
            (name, axis) for name, value in self._matrices.items() for axis in (1, 0) if value.shape[axis] == width
        ]
        return [Source(name, axis, gain) for name, axis in places for gain in ("", *names)]

    def widths(self) -> set[int]:
        """All lengths of axes."""
        return {size for value in self._matrices.values() for size in value.shape}

    def add(self, name: str, rows: Array) -> Source:
        """A further matrix, (n, width), that was put together from the others."""
        self._matrices[name] = rows
        return Source(name, 1, "")

    def rows(self, source: Source, *, tokens: int = 0) -> Array:
        """The vectors, (n, width), before any turn; of a vocabulary's, the first ``tokens``."""
        rows = np.moveaxis(self._matrices[source.tensor], source.axis, 1)
        rows = rows[:tokens] if tokens else rows
        return cleared(rows * self._gains[source.gain] if source.gain else rows, self.structure, tokens=tokens > 0)


@final
class View:
    """The suspect through one turn of the stream, (their width, our width)."""

    def __init__(self, suspect: Suspect, turn: Array) -> None:
        self.suspect, self.turn = suspect, turn
        self.rows: Callable[[Source], Array] = lru_cache(maxsize=1024)(lambda source: suspect.rows(source) @ turn)
        self.units: Callable[[Source], Array] = lru_cache(maxsize=1024)(lambda source: unit(self.rows(source)))
        self.heads: Callable[[Source, int], Array] = lru_cache(maxsize=1024)(
            lambda source, size: bases(self.rows(source), size)
        )

    def tokens(self, source: Source, count: int) -> Array:
        """The first ``count`` vectors as rows of a vocabulary."""
        return self.suspect.rows(source, tokens=count) @ self.turn


def bases(rows: Array, size: int) -> Array:
    """Orthonormal bases of whole blocks of ``size`` rows, (blocks, width, size)."""
    blocks = rows[: len(rows) // size * size].reshape(-1, size, rows.shape[1])
    return np.linalg.qr(blocks.transpose(0, 2, 1))[0]


def turns(suspect: Suspect, ours: Mapping[Part, Array]) -> list[Array]:
    """Turns of the stream to begin with: none, and those that vocabularies suggest, together and one by one."""
    tokens = [part for part in ours if part.kind == TOKENS]
    found = [item for part in tokens if (item := _vocabulary(suspect, part, ours[part])) is not None]
    width = next(iter(ours.values())).shape[1]
    turned = [np.eye(width)] if width in suspect.widths() else []
    if len(found) > 1 and len({item.shape for item in found}) == 1:
        found.insert(0, np.sum(found, axis=0))
    return turned + [procrustes(item) for item in found]


def _vocabulary(suspect: Suspect, part: Part, ours: Array) -> Array | None:
    """Σ theirs ᵀ ours over token rows of the matrix that agrees best with ours, by position."""
    best, most = None, 0.0
    for width in sorted(suspect.widths()):
        if not ours.shape[1] / 4 <= width <= 4 * ours.shape[1]:
            continue
        options = suspect.sources(width, gains=bool(part.gain))
        options.sort(key=lambda item: item != Source(part.tensor, part.axis, part.gain))
        for source in options:
            theirs = suspect.rows(source, tokens=len(ours))
            if len(theirs) < len(ours) * _HALF:
                continue
            together = unit(theirs).T @ unit(ours[: len(theirs)])
            agreement = float(np.linalg.norm(together, "nuc")) / len(theirs)
            best, most = (together, agreement) if agreement > most else (best, most)
            if agreement > CERTAIN and source.tensor == part.tensor:
                return together
    return best


def procrustes(together: Array) -> Array:
    """The semi-orthogonal turn T that makes Σ theirs·T nearest to ours, from Σ theirs ᵀ ours."""
    left, _, right = np.linalg.svd(together, full_matrices=False)
    return left @ right


def fitted(pairs: Iterable[tuple[Array, Array]], shape: Sequence[int]) -> Array:
    """The turn that all matched pairs of (theirs, ours), rows of length 1 each, agree on best."""
    together = np.zeros(shape)
    for theirs, ours in pairs:
        together += theirs.T @ ours
    return procrustes(together)
