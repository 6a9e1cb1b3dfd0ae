# SPDX-License-Identifier: Apache-2.0
"""What a written mark promises: quality, survival, identifier, refusals, and where it lies."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from privguard.errors import MarkError, ProfileMismatchError
from privguard.watermark.image.detect import ImageDetector
from privguard.watermark.image.keys import ImageKeys, oriented, pieces_of, undone, walsh, walsh_transform
from privguard.watermark.image.profile import ImageProfile
from privguard.watermark.image.sync import Search
from privguard.watermark.image.write import ImageMark
from privguard.watermark.secret import Secret


def jpeg(rgb, quality):
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def resized(rgb, factor):
    size = (round(rgb.shape[1] * factor), round(rgb.shape[0] * factor))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BICUBIC))


def quarter(rgb):
    height, width = (n // 2 for n in rgb.shape[:2])
    top, left = int(height * 0.37), int(width * 0.61)
    return np.ascontiguousarray(rgb[top : top + height, left : left + width])


# the weaker of two pictures sets each bar: half of "china" is sky, which carries no evidence
ATTACKS = {
    "none": (lambda a: a, -150),
    "JPEG 50": (lambda a: jpeg(a, 50), -50),
    "quarter": (quarter, -30),
    "noise": (lambda a: np.clip(a + np.random.default_rng(1).normal(0, 10, a.shape), 0, 255).astype(np.uint8), -50),
    "blur": (lambda a: ndimage.gaussian_filter(a, (1, 1, 0)), -75),
    "contrast": (lambda a: np.clip(a * 0.8 + 20, 0, 255).astype(np.uint8), -150),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", ["china", "flower"])
def test_it_survives_and_the_identifier_is_right(detector, marked, name, attack):
    change, least = ATTACKS[attack]
    detections = detector.detect([change(marked[name].pixels)])
    assert detections.log10_p[0] <= least
    assert detections.identifier == [marked[name].identifier]


@pytest.mark.parametrize("name", ["china", "flower"])
def test_strength_is_the_target_and_structure_is_kept(photographs, marked, name):
    before, after = photographs[name], marked[name].pixels
    assert peak_signal_noise_ratio(before, after) == pytest.approx(42.0, abs=0.2)
    assert marked[name].psnr == pytest.approx(peak_signal_noise_ratio(before, after), abs=0.01)
    assert structural_similarity(before, after, channel_axis=2) >= 0.98


def test_a_blind_screenshot_is_found(detector, marked):
    rgb = marked["china"].pixels
    cut = np.ascontiguousarray(rgb[30:390, 50:580])
    detections = detector.detect([jpeg(resized(cut, 0.83), 75)], search=Search.SCALE)
    assert detections.log10_p[0] <= -40
    assert detections.readings[0].placement.scale == pytest.approx(0.83, abs=0.004)


def test_a_rotation_is_found_where_it_is_searched(detector, marked):
    turned = np.asarray(Image.fromarray(marked["china"].pixels).rotate(5, Image.Resampling.BICUBIC))
    assert detector.detect([turned]).log10_p[0] > -3
    detections = detector.detect([turned], search=Search.SCALE_ANGLE)
    assert detections.log10_p[0] <= -120
    assert detections.readings[0].placement.angle == pytest.approx(-5, abs=0.1)


@pytest.mark.parametrize("orientation", range(8))
def test_flips_and_quarter_turns_cost_nothing(detector, marked, orientation):
    rgb = marked["china"].pixels
    assert np.array_equal(undone(oriented(rgb, orientation), orientation), rgb)
    plain = detector.detect([rgb]).log10_p[0]
    turned = np.ascontiguousarray(oriented(rgb, orientation))
    assert detector.detect([turned]).log10_p[0] == pytest.approx(plain, abs=1.0)


@pytest.mark.parametrize("bits", [24, 36, 48])
def test_every_length_of_identifier_is_read(secret, photographs, bits):
    profile = ImageProfile.create(secret, identifier_bits=bits)
    value = (1 << bits) - 3
    written = ImageMark(profile, secret).write(photographs["china"], identifier=value)
    detections = ImageDetector(profile, secret).detect([jpeg(written.pixels, 70)])
    assert detections.identifier == [value]
    assert detections.log10_p[0] < -50


def test_an_identifier_named_before_looking_pays_for_sub_keys_only(detector, marked):
    detections = detector.detect([marked["china"].pixels])
    open_, named = detections.verdict(0), detections.verdict(0, identifier=marked["china"].identifier)
    assert named.log10_p == pytest.approx(open_.log10_p - 24 * np.log10(2), abs=1e-6)
    assert detections.verdict(0, identifier=marked["china"].identifier ^ 0xFFF000).log10_p > open_.log10_p + 100
    assert detections.verdict(0, tests=1000).log10_p_corrected == pytest.approx(open_.log10_p + 3)


def test_the_e_value_is_strong_too_and_never_far_above_the_p_value(detector, marked, photographs):
    detections = detector.detect([marked["china"].pixels, photographs["china"]])
    assert detections.log10_e[0] > 150
    assert detections.log10_e[0] < -detections.log10_p[0]
    assert detections.log10_e[1] < 3


def test_writing_is_repeatable_and_sub_keys_and_identifiers_differ(mark, photographs):
    rgb = photographs["china"]
    first, again = mark.write(rgb), mark.write(rgb)
    assert np.array_equal(first.pixels, again.pixels)
    parts = [mark.write(np.ascontiguousarray(rgb[i : i + 200, :200])) for i in range(0, 64, 4)]
    assert len({part.identifier for part in parts}) == 16
    assert len({part.subkey for part in parts}) > 6


def test_half_a_marked_picture_shows_where_it_is(detector, marked, photographs):
    mixed = marked["china"].pixels.copy()
    mixed[:, 320:] = photographs["flower"][:, 320:]
    reading = detector.read(mixed)
    z = detector.block_z(reading)
    assert detector.detect([mixed]).log10_p[0] < -50
    ours, theirs = (part[part != 0] for part in (z[:, :5], z[:, 5:]))  # 0 is sky: it has no contrast
    assert ours.mean() > 4
    assert abs(theirs.mean()) < 1


def test_small_and_flat_pictures_are_refused(mark):
    with pytest.raises(MarkError, match="at least 192 pixels"):
        mark.write(np.zeros((191, 400, 3), np.uint8))
    with pytest.raises(MarkError, match="no part of it has contrast"):
        mark.write(np.full((256, 256, 3), 200, np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (63, 300), (10, 64)])
def test_a_picture_without_a_whole_block_has_no_evidence(detector, size):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    detections = detector.detect([noise])
    assert detections.log10_p[0] == 0.0
    assert not detections.accepted(log10_level=-6)[0]


@pytest.mark.parametrize(
    "wrong", [np.zeros((200, 200), np.uint8), np.zeros((200, 200, 4), np.uint8), np.zeros((200, 200, 3))]
)
def test_what_is_no_picture_is_refused(mark, detector, wrong):
    with pytest.raises(ValueError, match="expected uint8"):
        mark.write(wrong)
    with pytest.raises(ValueError, match="expected uint8"):
        detector.detect([wrong])


def test_an_identifier_that_does_not_fit_is_refused(mark, detector, photographs):
    with pytest.raises(ValueError, match="identifier"):
        mark.write(photographs["china"], identifier=1 << 24)
    with pytest.raises(ValueError, match="identifier"):
        detector.detect([photographs["china"]]).verdict(0, identifier=-1)


def test_another_secret_is_refused_and_keys_do_not_travel(profile, secret):
    with pytest.raises(ProfileMismatchError):
        ImageDetector(profile, Secret(bytes(32)))
    with pytest.raises(TypeError):
        pickle.dumps(ImageKeys(secret, pieces=2))


def test_walsh_transform_is_the_product_with_every_walsh_function():
    w = np.random.default_rng(2).integers(-50, 51, 4096)
    table = walsh_transform(w)
    for message in (0, 1, 77, 4095):
        assert table[message] == (w * walsh(message)).sum()
    assert pieces_of(0xABCDEF, pieces=2) == [0xDEF, 0xABC]
