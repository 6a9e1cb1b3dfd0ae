# SPDX-License-Identifier: Apache-2.0
"""The grid of blocks: each block's hash of its own content, and the whole weights that its evidence signs will meet.

Blocks of one hash are added before scoring, so that each sign is counted once. Blocks without contrast are left out:
their hash is noise, and content to suit a foreign hash could be put there unseen.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import final

import numpy as np
from numpy.typing import NDArray

from privguard.watermark.image.keys import BLOCK, HASH_BITS, POSITIONS, SHAPES, ImageKeys, Reals, rfft2
from privguard.watermark.image.pixels import irfft2, residual, whitener

CELL = 8  # a block has 8 × 8 cells of 8 × 8 pixels; the hash reads their means
LEAST_CONTRAST = 3.0  # grey levels, root mean square over the cells of the 15 shapes
_STEP = 8.0  # whole weights: so many to the mean absolute value
_MOST = 64  # no weight of one block is above


@lru_cache(maxsize=1)
def shapes() -> NDArray[np.float64]:
    """The 15 cosine shapes over the 64 cells, orthonormal, (15, 64), in the order (0,1), (0,2), …, (3,3)."""
    half = (np.arange(CELL) + 0.5) * np.pi / CELL
    waves = [np.cos(half * k) / np.linalg.norm(np.cos(half * k)) for k in range(4)]
    return np.array([np.outer(waves[a], waves[b]).ravel() for a in range(4) for b in range(4) if a + b])


@final
@dataclass(frozen=True)
class Grid:
    """Where the whole blocks of a picture begin: rows and columns of blocks from ``(top, left)``, both below 64."""

    top: int
    left: int
    rows: int
    columns: int

    @classmethod
    def of(cls, shape: tuple[int, ...], *, top: int = 0, left: int = 0) -> "Grid":
        """The grid with this origin, modulo 64, in a picture of ``shape``."""
        top, left = top % BLOCK, left % BLOCK
        return cls(top, left, max(0, shape[0] - top) // BLOCK, max(0, shape[1] - left) // BLOCK)

    def cut(self, y: Reals) -> Reals:
        """The blocks of (H, W), (rows·columns, 64, 64), row by row."""
        bottom, right = self.top + self.rows * BLOCK, self.left + self.columns * BLOCK
        parts = y[self.top : bottom, self.left : right].reshape(self.rows, BLOCK, self.columns, BLOCK)
        return parts.swapaxes(1, 2).reshape(-1, BLOCK, BLOCK)

    def join(self, blocks: Reals, shape: tuple[int, ...]) -> Reals:
        """The inverse of ``cut``; zero outside the blocks."""
        out = np.zeros(shape, np.float32)
        bottom, right = self.top + self.rows * BLOCK, self.left + self.columns * BLOCK
        parts = blocks.reshape(self.rows, self.columns, BLOCK, BLOCK).swapaxes(1, 2)
        out[self.top : bottom, self.left : right] = parts.reshape(bottom - self.top, right - self.left)
        return out


def content(blocks: Reals) -> NDArray[np.float64]:
    """The coarse content of (N, 64, 64) blocks of luma: the 15 shapes in their cell means, (N, 15)."""
    cells = blocks.reshape(-1, CELL, CELL, CELL, CELL).mean((2, 4), dtype=np.float64)
    return cells.reshape(-1, CELL * CELL) @ shapes().T


def contrast(coarse: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square of the coarse content, in grey levels: (N, 15) to (N,)."""
    return np.linalg.norm(coarse, axis=1) / CELL


def hashes(coarse: NDArray[np.float64], keys: ImageKeys) -> NDArray[np.int64]:
    """The 12-bit hash of each block's coarse content: bit b is set where direction b agrees, (N, 15) to (N,)."""
    return ((coarse @ keys.directions.T > 0) << np.arange(HASH_BITS)).sum(-1)


@final
@dataclass(frozen=True)
class Evidence:
    """What a picture offers: for each distinct hash the whole weights of its 4,096 signs.

    ``hashes`` (K,), ``weights`` (K, 4096); ``block_hash`` (N,) is each block's row in them, −1 where it was left out;
    ``block_weights`` (N, 4096) are the weights before blocks of one hash are added.
    """

    grid: Grid
    hashes: NDArray[np.int64]
    weights: NDArray[np.int32]
    block_hash: NDArray[np.int64]
    block_weights: NDArray[np.int16]

    @classmethod
    def of(cls, y: Reals, grid: Grid, keys: ImageKeys) -> "Evidence":
        """The evidence in luma (H, W) under this grid."""
        coarse = content(grid.cut(y))
        used = contrast(coarse) >= LEAST_CONTRAST
        block_weights = np.zeros((len(used), POSITIONS), np.int16)
        if used.any():
            block_weights[used] = _weights(grid.cut(residual(y))[used])
        values, rows = np.unique(hashes(coarse[used], keys), return_inverse=True)
        weights = np.zeros((len(values), POSITIONS), np.int32)
        np.add.at(weights, rows, block_weights[used])
        block_hash = np.full(len(used), -1)
        block_hash[used] = rows
        return cls(grid, values, weights, block_hash, block_weights)


def _weights(blocks: Reals) -> NDArray[np.int16]:
    """Whole weights of (N, 64, 64) blocks of the residual: matched to the band, against the picture's own spectrum."""
    spectrum = rfft2(blocks)
    power = (spectrum.real**2 + spectrum.imag**2).mean(0)
    spectrum *= whitener(power, BLOCK)
    out = irfft2(spectrum, BLOCK).reshape(len(blocks), POSITIONS)
    out *= _STEP / (float(np.abs(out).mean()) + 1e-30)
    return np.clip(np.rint(out), -_MOST, _MOST).astype(np.int16)


assert len(shapes()) == SHAPES  # noqa: S101 — the two files speak of the same shapes
