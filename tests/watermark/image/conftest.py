# SPDX-License-Identifier: Apache-2.0
"""A fixed secret, its profile, and the two photographs that scikit-learn ships."""

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

from privguard.watermark.image.detect import ImageDetector
from privguard.watermark.image.profile import ImageProfile
from privguard.watermark.image.write import ImageMark
from privguard.watermark.secret import Secret


@pytest.fixture(scope="session")
def secret() -> Secret:
    return Secret(bytes(range(32)))


@pytest.fixture(scope="session")
def profile(secret) -> ImageProfile:
    return ImageProfile.create(secret)


@pytest.fixture(scope="session")
def mark(profile, secret) -> ImageMark:
    return ImageMark(profile, secret)


@pytest.fixture(scope="session")
def detector(profile, secret) -> ImageDetector:
    return ImageDetector(profile, secret)


@pytest.fixture(scope="session")
def photographs() -> dict[str, np.ndarray]:
    sample = load_sample_images()
    return {name: np.asarray(image) for name, image in zip(("china", "flower"), sample.images, strict=True)}


@pytest.fixture(scope="session")
def marked(mark, photographs):
    return {name: mark.write(rgb) for name, rgb in photographs.items()}
