# SPDX-License-Identifier: Apache-2.0
"""Writing the mark into pixels: a fifth of its power for the sync tile, the rest for evidence bound to content.

The writer also moves coarse content by a fraction of a grey level, until every hash bit of a block stands clear of
zero: compression then finds the same hash.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from privguard import _check
from privguard.errors import MarkError
from privguard.watermark.image import blocks as grids
from privguard.watermark.image.blocks import Grid
from privguard.watermark.image.keys import BLOCK, PIECE_BITS, TILE, Reals, pieces_of, walsh
from privguard.watermark.image.pixels import luma, mask, spread_out
from privguard.watermark.image.profile import ImageProfile
from privguard.watermark.secret import Secret

SMALLEST = 192  # pixels, each way: below, too few blocks survive anything
SYNC_SHARE = 0.2  # of the power
_MARGIN = 2.0  # grey levels × cells: how clear of zero a hash bit is made
_ROUNDS = 3  # clipping and rounding eat a little; so often the strength is corrected
_SUBKEY, _IDENTIFIER = 0, 1


@final
@dataclass(frozen=True)
class Written:
    """A marked picture: its pixels (H, W, 3), what was written, and its peak signal-to-noise ratio in decibels."""

    pixels: NDArray[np.uint8]
    identifier: int
    subkey: int
    psnr: float


@final
class ImageMark:
    """Writes marks of one profile with its secret.

    Raises:
        ProfileMismatchError: the secret is not the profile's.
    """

    def __init__(self, profile: ImageProfile, secret: Secret) -> None:
        self.profile = profile
        self._keys = profile.keys(secret)

    def identifier_of(self, rgb: NDArray[np.uint8]) -> int:
        """The identifier that a picture gets where none is named: a keyed hash of its pixels, so the same each time.

        Two pictures share one by chance: at 24 bits that is likely from about 5,000 pictures on, and the log then
        decides between them; a profile of 48 bits puts it off to some 20 million.

        Args:
            rgb: pixels (H, W, 3), uint8.
        """
        bits = self.profile.identifier_bits
        return self._keys.choose(_digest(rgb), below=1 << bits, purpose=_IDENTIFIER)

    def write(self, rgb: NDArray[np.uint8], *, identifier: int | None = None) -> Written:
        """Mark pixels (H, W, 3) of type uint8; the sub-key follows from key and picture, so the result is repeatable.

        Args:
            rgb: pixels (H, W, 3), uint8.
            identifier: the number to carry; None for a keyed hash of the picture.

        Raises:
            MarkError: a side below 192 pixels, or a picture in which no block has contrast.
            ValueError: no such array, or an identifier that needs more bits than the profile has.
        """
        require_pixels(rgb)
        if min(rgb.shape[:2]) < SMALLEST:
            raise MarkError(
                f"picture={rgb.shape[1]}×{rgb.shape[0]}: expected at least {SMALLEST} pixels each way; a smaller one "
                "cannot hold a mark that survives anything, so mark it before it is made small"
            )
        value = self.identifier_of(rgb) if identifier is None else identifier
        bits = self.profile.identifier_bits
        _check.require(0 <= value < 1 << bits, "identifier", value, wanted=f"a number of {bits} bits")
        subkey = self._keys.choose(_digest(rgb), below=self.profile.subkeys, purpose=_SUBKEY)
        y, base = luma(rgb), rgb.astype(np.float32)
        grid = Grid.of(y.shape)
        coarse = grids.content(grid.cut(y))
        used = grids.contrast(coarse) >= grids.LEAST_CONTRAST
        if not used.any():
            raise MarkError(
                "picture: no part of it has contrast, so nothing there can be told from other pictures; flat graphics "
                "cannot carry a mark, a signed manifest can"
            )
        change = self._pattern(grid.join(self._evidence(coarse, used, value, subkey), y.shape)) * mask(y)
        steady = grid.join(self._steadying(coarse) * used[:, None, None], y.shape)
        pixels = _with_strength(base + steady[..., None], change, base, target=self.profile.target_psnr)
        return Written(pixels, value, subkey, psnr(base, pixels))

    def _evidence(self, coarse: NDArray[np.float64], used: NDArray[np.bool_], identifier: int, subkey: int) -> Reals:
        """The evidence pattern of each block, (N, 64, 64): deviation 1, and nothing where no reader would look.

        Whoever learns from many pictures would else learn from blocks that count for nobody.
        """
        values, rows = np.unique(grids.hashes(coarse, self._keys), return_inverse=True)
        fields = self._keys.evidence(values, subkey=subkey)
        turns = np.stack([walsh(m) for m in pieces_of(identifier, pieces=self._keys.pieces)])
        summed = (fields * turns[:, None]).sum(0, dtype=np.int16).reshape(-1, BLOCK, BLOCK)
        return spread_out(summed, BLOCK)[rows] * used[:, None, None]

    def _pattern(self, evidence: Reals) -> Reals:
        """Sync tile and evidence together, (H, W), of deviation 1 where both are."""
        sync = _tiled(spread_out(self._keys.sync, TILE), evidence.shape)
        return np.sqrt(np.float32(SYNC_SHARE)) * sync + np.sqrt(np.float32(1 - SYNC_SHARE)) * evidence

    def _steadying(self, coarse: NDArray[np.float64]) -> Reals:
        """The smallest change of each block's cells that puts every hash bit the margin away from 0, (N, 64, 64)."""
        agreement = coarse @ self._keys.directions.T
        sign = np.where(agreement > 0, 1.0, -1.0)
        push = sign * np.maximum(_MARGIN - np.abs(agreement), 0.0)
        cells = (push @ self._keys.directions @ grids.shapes()).reshape(-1, grids.CELL, grids.CELL)
        return np.kron(cells, np.ones((1, grids.CELL, grids.CELL))).astype(np.float32)


def psnr(before: NDArray[Any], after: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio in decibels over all pixels and colours; infinite where nothing changed.

    Args:
        before: pixels before.
        after: pixels after, of the same shape.
    """
    error = float(np.mean((after.astype(np.float32) - before) ** 2, dtype=np.float64))
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def require_pixels(rgb: NDArray[Any]) -> None:
    """Refuse what is no (H, W, 3) array of uint8.

    Args:
        rgb: pixels (H, W, 3), uint8.

    Raises:
        ValueError: it is not.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:  # noqa: PLR2004 — height, width, three colours
        raise ValueError(f"rgb: {rgb.dtype} of shape {rgb.shape}: expected uint8 of shape (height, width, 3)")


def _with_strength(start: Reals, change: Reals, base: Reals, *, target: float) -> NDArray[np.uint8]:
    wanted = 255.0 / 10 ** (target / 20)
    gain, out = np.float32(wanted / np.sqrt(np.mean(change * change))), np.empty(0, np.uint8)
    for _ in range(_ROUNDS):
        out = np.clip(np.rint(start + (gain * change)[..., None]), 0, 255).astype(np.uint8)
        gain *= np.float32(10 ** ((psnr(base, out) - target) / 20))
    return out


def _tiled(tile: Reals, shape: tuple[int, ...]) -> Reals:
    repeats = (-(-shape[0] // TILE), -(-shape[1] // TILE))
    return np.tile(tile, repeats)[: shape[0], : shape[1]]


def _digest(rgb: NDArray[np.uint8]) -> bytes:
    return hashlib.sha256(repr(rgb.shape).encode() + np.ascontiguousarray(rgb).tobytes()).digest()


assert PIECE_BITS * 2 == 24  # noqa: S101,PLR2004 — two fields carry the smallest identifier
