# SPDX-License-Identifier: Apache-2.0
"""What both sides compute from pixels alone: luma, the residual in which a mark is sought, the mask that hides it.

Nothing here reads a key, so nothing here can bend a p-value; it only decides how much of a mark is seen.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter

from privguard.watermark.image.keys import Reals, Spectra, rfft2

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as JPEG has it
_CENTRE, _WIDTH = 0.11, 0.45  # of the band: a period of nine pixels, and the deviation of its logarithm


def luma(rgb: NDArray[np.uint8]) -> Reals:
    """Brightness of (H, W, 3) pixels, (H, W), 0 to 255."""
    return np.asarray(rgb.astype(np.float32) @ _LUMA)


def residual(y: Reals) -> Reals:
    """What is left of the luma without its surroundings, divided by its local spread and cut off at ±2.5."""
    h: Reals = y - smooth(y, 4.0)
    spread = np.sqrt(smooth(np.square(h), 4.0))
    spread += np.float32(1.5)
    h /= spread
    return np.clip(h, -2.5, 2.5, out=h)


def mask(y: Reals) -> Reals:
    """How much change the eye forgives at each pixel, from local activity: 1 in flat parts to 6 in busy ones."""
    h: Reals = y - smooth(y, 3.0)
    activity = np.sqrt(smooth(np.square(h), 3.0))
    return np.asarray(np.clip(0.6 + 0.35 * activity, 1.0, 6.0), np.float32)


def smooth(y: Reals, sigma: float) -> Reals:
    """A Gaussian average, mirrored at the edges, cut off at four deviations."""
    return np.asarray(gaussian_filter(y, sigma, mode="reflect", truncate=4.0), np.float32)


@lru_cache(maxsize=2)
def band(size: int) -> Reals:
    """The pass band of a size × size real Fourier transform, (size, size/2+1): log-normal around nine pixels."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    with np.errstate(divide="ignore"):
        out = np.exp(-0.5 * (np.log(frequency / _CENTRE) / _WIDTH) ** 2)
    return out.astype(np.float32)


@lru_cache(maxsize=2)
def rings(size: int) -> NDArray[np.int64]:
    """The ring of each coefficient of such a transform: its distance from the centre, rounded down, at most size/2."""
    distance = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) * size
    return np.minimum(distance.astype(np.int64), size // 2)


def whitener(power: NDArray[Any], size: int) -> Reals:
    """Band over the mean power of each ring, (size, size/2+1): the filter against a picture's own spectrum."""
    ring = rings(size)
    mean = np.bincount(ring.ravel(), power.ravel()) / np.bincount(ring.ravel())
    return (band(size) / (mean[ring] + 1e-9)).astype(np.float32)


def irfft2(spectrum: Spectra, size: int) -> Reals:
    """The inverse of ``rfft2`` for size × size arrays."""
    return np.asarray(fft.irfft2(spectrum, s=(size, size)), np.float32)


def spread_out(signs: NDArray[Any], size: int) -> Reals:
    """Signs (…, size, size) as a pattern in the band, of deviation 1: what a writer adds."""
    pattern = irfft2(rfft2(signs.astype(np.float32)) * band(size), size)
    return pattern / pattern.std((-2, -1), keepdims=True)
