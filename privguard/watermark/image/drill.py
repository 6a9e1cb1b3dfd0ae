# SPDX-License-Identifier: Apache-2.0
"""Drills on the owner's own pictures: what marking costs, what handling leaves of the mark, how small a picture may be.

Handling is what happens to pictures on their way: compression, scaling, cutting, a screenshot. What an enemy does is
not among it: regeneration by a model removes every mark in pixels.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from privguard.records import Record
from privguard.watermark.image.detect import ImageDetector
from privguard.watermark.image.pixels import luma
from privguard.watermark.image.sync import Search
from privguard.watermark.image.write import SMALLEST, ImageMark

Pixels: TypeAlias = NDArray[np.uint8]
Change: TypeAlias = Callable[[Image.Image], Image.Image]

SIZES = (SMALLEST, 256, 384, 512)  # short sides in pixels
_SSIM_SIGMA, _SSIM_K1, _SSIM_K2 = 1.5, 0.01, 0.03


@final
@dataclass(frozen=True)
class Handling:
    """A way to handle a picture, and how hard the detector has to look afterwards."""

    change: Change
    search: Search = Search.GRID


@final
@dataclass(frozen=True, kw_only=True)
class Trial(Record):
    """One picture after one way of handling: log10 p with everything paid for, attribution, the right identifier."""

    handling: str
    log10_p: float
    attributed: bool
    identifier_right: bool


@final
@dataclass(frozen=True, kw_only=True)
class Drilled(Record):
    """One picture: its quality after marking, every trial, and log10 p by short side after marking and JPEG 75."""

    picture: str
    psnr: float
    ssim: float
    trials: tuple[Trial, ...]
    by_size: tuple[tuple[int, float], ...]


@final
@dataclass(frozen=True, kw_only=True)
class Survival(Record):
    """One row of the table: shares of the pictures, median and worst log10 p."""

    handling: str
    found: float
    attributed: float
    identifier_right: float
    median_log10_p: float
    worst_log10_p: float
    pictures: int


def handlings() -> dict[str, Handling]:
    """The ways of handling that a drill tries."""
    return {
        "none": Handling(lambda image: image),
        "JPEG 90": Handling(lambda image: _encoded(image, "JPEG", 90)),
        "JPEG 70": Handling(lambda image: _encoded(image, "JPEG", 70)),
        "JPEG 50": Handling(lambda image: _encoded(image, "JPEG", 50)),
        "JPEG 30": Handling(lambda image: _encoded(image, "JPEG", 30)),
        "WebP 60": Handling(lambda image: _encoded(image, "WEBP", 60)),
        "blur 1": Handling(lambda image: image.filter(ImageFilter.GaussianBlur(1))),
        "blur 2": Handling(lambda image: image.filter(ImageFilter.GaussianBlur(2))),
        "80 % contrast": Handling(lambda image: ImageEnhance.Contrast(image).enhance(0.8)),
        "half size and back": Handling(lambda image: _scaled(image, 0.5).resize(image.size)),
        "mirrored": Handling(ImageOps.mirror),
        "half of the area": Handling(lambda image: _part(image, 0.5)),
        "quarter of the area": Handling(lambda image: _part(image, 0.25)),
        "half size": Handling(lambda image: _scaled(image, 0.5), Search.SCALE),
        "screenshot": Handling(lambda image: _encoded(_scaled(_part(image, 0.7), 0.83), "JPEG", 75), Search.SCALE),
        "rotated by 5°": Handling(lambda image: image.rotate(5, Image.Resampling.BICUBIC), Search.SCALE_ANGLE),
    }


def drill(
    mark: ImageMark,
    detector: ImageDetector,
    rgb: Pixels,
    *,
    name: str,
    ways: Mapping[str, Handling] | None = None,
    log10_level: float = -6.0,
) -> Drilled:
    """Mark one picture, handle it in every way, and detect again.

    Args:
        mark: The writer.
        detector: The reader of the same profile.
        rgb: The picture, uint8 of shape (H, W, 3).
        name: What the report calls it.
        ways: The ways of handling; those of ``handlings`` where none are given.
        log10_level: log10 of the error probability for which a mark counts as attributed.

    Returns:
        Quality, trials, and log10 p by size.

    Raises:
        MarkError: the picture cannot carry a mark.
    """
    written = mark.write(rgb)
    image, trials = Image.fromarray(written.pixels), list[Trial]()
    for handling, way in (handlings() if ways is None else ways).items():
        found = detector.detect([np.asarray(way.change(image))], search=way.search)
        trials.append(
            Trial(
                handling=handling,
                log10_p=float(found.log10_p[0]),
                attributed=bool(found.accepted(log10_level=log10_level)[0]),
                identifier_right=found.identifier[0] == written.identifier,
            )
        )
    by_size = tuple((side, _small(mark, detector, rgb, side)) for side in SIZES if side <= min(rgb.shape[:2]))
    return Drilled(
        picture=name, psnr=written.psnr, ssim=ssim(rgb, written.pixels), trials=tuple(trials), by_size=by_size
    )


def survival(drilled: Sequence[Drilled], *, log10_level: float) -> list[Survival]:
    """The table over all pictures, one row for each way of handling.

    Args:
        drilled: pictures and how each was handled.
        log10_level: log10 of the level, at most 0.
    """
    rows: list[Survival] = []
    for trials in zip(*(each.trials for each in drilled), strict=True):
        p = np.array([trial.log10_p for trial in trials])
        found = p <= log10_level
        right = [trial.identifier_right for trial in trials] & found
        rows.append(
            Survival(
                handling=trials[0].handling,
                found=float(found.mean()),
                attributed=float(np.mean([trial.attributed for trial in trials])),
                identifier_right=float(right.mean()),
                median_log10_p=float(np.median(p)),
                worst_log10_p=float(p.max()),
                pictures=len(trials),
            )
        )
    return rows


def smallest_size(drilled: Sequence[Drilled], *, log10_level: float) -> int | None:
    """The least short side from which on every picture was found at every size tried; none where the largest fails.

    Args:
        drilled: pictures and how each was handled.
        log10_level: log10 of the level, at most 0.
    """
    smallest = None
    for side in sorted({side for each in drilled for side, _ in each.by_size}, reverse=True):
        if any(p > log10_level for each in drilled for size, p in each.by_size if size == side):
            break
        smallest = side
    return smallest


def ssim(before: Pixels, after: Pixels) -> float:
    """Structural similarity of the luma of two pictures, at most 1 (Wang et al. 2004, Gaussian windows of σ = 1.5).

    Args:
        before: luma (H, W) before.
        after: luma (H, W) after.
    """
    from scipy.ndimage import gaussian_filter

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(gaussian_filter(values, _SSIM_SIGMA, truncate=3.5))

    x, y = luma(before).astype(np.float64), luma(after).astype(np.float64)
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (_SSIM_K1 * 255) ** 2, (_SSIM_K2 * 255) ** 2
    quality = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(quality.mean())


def _small(mark: ImageMark, detector: ImageDetector, rgb: Pixels, side: int) -> float:
    image = Image.fromarray(rgb)
    factor = side / min(image.size)
    small = image.resize((max(side, round(image.width * factor)), max(side, round(image.height * factor))))
    written = Image.fromarray(mark.write(np.asarray(small)).pixels)
    return float(detector.detect([np.asarray(_encoded(written, "JPEG", 75))]).log10_p[0])


def _encoded(image: Image.Image, kind: str, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return Image.open(file).convert("RGB")


def _scaled(image: Image.Image, factor: float) -> Image.Image:
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC)


def _part(image: Image.Image, kept: float) -> Image.Image:
    width, height = (round(n * math.sqrt(kept)) for n in image.size)
    left, top = round((image.width - width) * 0.61), round((image.height - height) * 0.37)
    return image.crop((left, top, left + width, top + height))
