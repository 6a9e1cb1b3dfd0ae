# SPDX-License-Identifier: Apache-2.0
"""Where is the grid? The sync tile answers: shift, flip and turn at once, scale and angle by search.

The tile repeats, so it can be learnt from marked pictures, and is therefore never evidence. Searching with its key
costs nothing, because the evidence signs come from another.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from privguard.watermark.image.keys import BLOCK, TILE, ImageKeys, Reals, Spectra, oriented, rfft2
from privguard.watermark.image.pixels import irfft2, luma, residual, whitener

_SMALLEST, _LARGEST = 0.45, 1.6  # scales that are searched
_FINE = 0.008  # step of the logarithm of the scale
_ANGLES = np.arange(-6.0, 6.01, 0.25)  # degrees
_SEARCHED, _REFINED = 512, 1024  # a search looks at so many pixels in the middle, each way; refining it at more
_UNMOVED = 2 * math.log(8 * TILE * TILE)  # what half the prior for "nothing moved" is worth, in squared deviations


class Search(StrEnum):
    """How hard to look for the grid: shifts, flips and quarter turns only; scales too; small angles too."""

    GRID = "grid"
    SCALE = "scale"
    SCALE_ANGLE = "scale+angle"


@final
@dataclass(frozen=True)
class Placement:
    """How a picture lies.

    Turned by ``angle`` degrees, resized by 1/``scale``, then put into ``orientation`` 0 to 7 (quarter turns, plus 4
    where mirrored first), it lies as it was marked; the grid then begins at ``(top, left)``. ``z`` is the agreement
    with the sync tile.
    """

    z: float
    top: int
    left: int
    orientation: int = 0
    angle: float = 0.0
    scale: float = 1.0

    def applied(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture as it was when it was marked, up to what was cut away."""
        if self.angle != 0.0 or self.scale != 1.0:
            image = Image.fromarray(rgb)
            if self.angle != 0.0:
                image = image.rotate(self.angle, Image.Resampling.BICUBIC)
            rgb = np.asarray(image.resize(_size(rgb.shape, self.scale), Image.Resampling.BICUBIC))
        return np.ascontiguousarray(oriented(rgb, self.orientation))


def place(rgb: NDArray[np.uint8], keys: ImageKeys, *, search: Search = Search.GRID) -> Placement:
    """The likeliest placement of a picture (H, W, 3).

    A search looks at the middle of a large picture; the shift is then found on all of it.
    """
    if search is Search.GRID:
        return _aligned(residual(luma(rgb)), keys)
    h = residual(luma(rgb))
    best, large = _best(_middle(h, _SEARCHED), keys, _candidates(search)), _middle(h, _REFINED)
    for step in (_FINE / 4, _FINE / 16):
        near = [(best.angle, best.scale * math.exp(k * step)) for k in range(-4, 5)]
        best = max(best, _best(large, keys, near), key=lambda p: p.z)
    if best.angle:
        near = [(best.angle + turn, best.scale) for turn in (-0.12, -0.06, 0.06, 0.12)]
        best = max(best, _best(large, keys, near), key=lambda p: p.z)
    upright = replace(best, orientation=0).applied(rgb)
    return replace(_aligned(residual(luma(upright)), keys), angle=best.angle, scale=best.scale)


def _candidates(search: Search) -> list[tuple[float, float]]:
    scales = np.exp(np.arange(math.log(_SMALLEST), math.log(_LARGEST), _FINE)).tolist()
    out = [(0.0, 1.0), *((0.0, scale) for scale in scales)]
    if search is Search.SCALE_ANGLE:
        out += [(float(angle), 1.0) for angle in _ANGLES]
    return out


def _best(h: Reals, keys: ImageKeys, candidates: Iterable[tuple[float, float]]) -> Placement:
    out, rotated, image = Placement(-1.0, 0, 0), (0.0, Image.fromarray(h)), Image.fromarray(h)
    for angle, scale in candidates:
        size = _size(h.shape, scale)
        if min(size) < 2 * BLOCK:
            continue
        if angle != rotated[0]:
            rotated = (angle, image.rotate(angle, Image.Resampling.BILINEAR) if angle else image)
        found = _aligned(np.asarray(rotated[1].resize(size, Image.Resampling.BILINEAR)), keys)
        if found.z > out.z:
            out = replace(found, angle=angle, scale=scale)
    return out


def _aligned(h: Reals, keys: ImageKeys) -> Placement:
    """Flip and quarter turn of a residual (H, W) from one fold, then the shift of the residual that lies upright."""
    scores = _correlations(_fold(h), keys.sync_spectra)
    if scores[0, 0, 0] > 0 and scores[0, 0, 0] ** 2 + _UNMOVED > float(scores.max()) ** 2:
        return Placement(float(scores[0, 0, 0]), 0, 0)
    orientation = int(scores.max((1, 2)).argmax())
    best = scores[orientation]
    if orientation:
        best = _correlations(_fold(oriented(h, orientation)), keys.sync_spectra[:1])[0]
    top, left = divmod(int(best.argmax()), TILE)
    return Placement(float(best.max()), top, left, orientation)


def _correlations(fold: Reals, spectra: Spectra) -> Reals:
    """Agreement of a whitened fold (128, 128) with each tile at every shift, in deviations, (N, 128, 128)."""
    spectrum = rfft2(fold)
    spectrum *= whitener(spectrum.real**2 + spectrum.imag**2, TILE)
    weights = irfft2(spectrum, TILE)
    norm = np.linalg.norm(weights) + np.float32(1e-30)
    return np.asarray(irfft2(spectrum * spectra, TILE) / norm, np.float32)


def _fold(h: Reals) -> Reals:
    rows, columns = (-(-n // TILE) * TILE for n in h.shape)
    whole = np.zeros((rows, columns), np.float32)
    whole[: h.shape[0], : h.shape[1]] = h
    return whole.reshape(rows // TILE, TILE, columns // TILE, TILE).sum((0, 2))


def _size(shape: tuple[int, ...], scale: float) -> tuple[int, int]:
    return round(shape[1] / scale), round(shape[0] / scale)


def _middle(h: Reals, size: int) -> Reals:
    top, left = (max(0, (n - size) // 2) for n in h.shape)
    return np.ascontiguousarray(h[top : top + size, left : left + size])
