# SPDX-License-Identifier: Apache-2.0
"""Photographs that come inside packages: scikit-learn's two, and those of scikit-image's wheel; parts, and changes."""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

TEN = (
    "china.jpg", "flower.jpg", "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg",
    "motorcycle_left.png", "hubble_deep_field.jpg", "brick.png",
)  # fmt: skip
_NO_PHOTOGRAPHS = {"phantom.png", "logo.png", "horse.png", "bw_text.png", "page.png", "text.png"}


@lru_cache(maxsize=1)
def pictures() -> dict[str, NDArray[np.uint8]]:
    """Each photograph of at least 256 pixels as (H, W, 3), at most 600 × 800, the ten of the table first."""
    sample = load_sample_images()
    out = {Path(name).name: np.asarray(image) for name, image in zip(sample.filenames, sample.images, strict=True)}
    folder = Path(skimage.__file__).parent / "data"
    for path in sorted([*folder.glob("*.png"), *folder.glob("*.jpg")]):
        with Image.open(path) as image:
            if min(image.size) >= 256 and path.name not in _NO_PHOTOGRAPHS:
                out[path.name] = np.asarray(image.convert("RGB"))
    names = [*TEN, *(name for name in out if name not in TEN)]
    cut = {name: out[name][:600, :800] if max(out[name].shape) > 900 else out[name] for name in names}
    return {name: np.ascontiguousarray(rgb) for name, rgb in cut.items()}


def jpeg(rgb, quality):
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def resized(rgb, factor):
    size = (round(rgb.shape[1] * factor), round(rgb.shape[0] * factor))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))


def noisy(rgb, deviation):
    return np.clip(rgb + np.random.default_rng(1).normal(0, deviation, rgb.shape), 0, 255).astype(np.uint8)


def parts(count, *, foreign=False, size=320):
    """Random parts of half of the photographs, scaled and turned; ``foreign`` ones of the other half."""
    names = [name for name in pictures() if name != "motorcycle_right.png"]  # the scene of its left neighbour
    rng, photographs = np.random.default_rng(7), [pictures()[name] for name in names[int(foreign) :: 2]]
    for _ in range(count):
        rgb = photographs[rng.integers(len(photographs))]
        factor = max(rng.uniform(0.6, 1.3), (size + 1) / min(rgb.shape[:2]))
        rgb = resized(rgb, factor)
        top, left = (int(rng.integers(n - size + 1)) for n in rgb.shape[:2])
        part = np.rot90(rgb[top : top + size, left : left + size], rng.integers(4))
        yield np.ascontiguousarray(part[:, ::-1] if rng.random() < 0.5 else part)
